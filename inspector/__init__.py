"""Shows and proves what KVM-HV on POWER believes about nested guests."""

__version__ = "0.1.0"
