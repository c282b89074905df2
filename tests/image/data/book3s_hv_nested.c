/*
 * Types for the tests of inspector.image.dwarf.  Made with
 *   powerpc64le-linux-gnu-gcc -gdwarf-5 -O0 -c book3s_hv_nested.c && xz book3s_hv_nested.o
 */
struct forward;
struct list { struct list *next, *prev; };
typedef struct { unsigned int slock; } raw_t;
typedef const raw_t lock_t;
struct outer {
	volatile lock_t lock;
	union {
		struct list node[2];
		struct { unsigned long first; unsigned char second; };
	};
	struct { unsigned short deep; char name[3][5]; } inner;
	struct forward *pointer;
	int (*function)(void);
	unsigned char flag : 3, other : 5;
};
struct outer object;
struct list *user(struct forward *pointer) { return (struct list *)pointer; }
