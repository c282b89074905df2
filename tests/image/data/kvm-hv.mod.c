/*
 * The unit that a module ends with, for the tests of inspector.image.dwarf.  Made with
 *   powerpc64le-linux-gnu-gcc -gdwarf-4 -O0 -c book3s_hv_nested.c kvm-hv.mod.c &&
 *   powerpc64le-linux-gnu-ld -r -o kvm-hv.o book3s_hv_nested.o kvm-hv.mod.o && xz kvm-hv.o
 */
struct list { long another; };
struct module { char state; struct list list; };
struct module this_module;
