/*
 * Lets User-mode Linux 6.1 run on processors with AMX; preloaded into it by tools/machine.py.
 *
 * It restores the registers of its processes with PTRACE_SETREGSET of NT_X86_XSTATE (ptrace(2)), from a buffer of
 * 2,696 bytes: all there was before AMX. The host wants the whole state or nothing (xstateregs_set() in
 * arch/x86/kernel/fpu/regset.c) and answers EFAULT, on which the machine panics with its first program. So what is too
 * short is made whole here, with the components that it lacks in their initial state.
 *
 * Linked without a C library, so that it needs a compiler and no headers.
 */

typedef unsigned long size;

struct vector {
    char *base;
    size length;
};

enum {
    SYS_PTRACE = 101,
    PEEKTEXT = 1,
    PEEKUSER = 3,
    GETREGSET = 0x4204,
    SETREGSET = 0x4205,
    NT_X86_XSTATE = 0x202,
    MOST = 64 << 10,
    XSTATE_BV = 512,  /* where the bit set of components is that are not in their initial state */
    KNOWN = 0x3ff,    /* components 0 to 9 (x87 to PKRU) end within 2,696 bytes */
};

extern int *__errno_location(void);

static char state[MOST] __attribute__((aligned(64)));

static long kernel(long request, long process, void *address, void *data) {
    long result;
    register void *fourth __asm__("r10") = data;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(SYS_PTRACE), "D"(request), "S"(process), "d"(address), "r"(fourth)
                     : "rcx", "r11", "memory");
    return result;
}

/* The size of the state on this processor; the kernel shortens the vector to it. */
static size whole_size(long process) {
    static size found;
    if (found == 0) {
        struct vector all = {state, MOST};
        found = kernel(GETREGSET, process, (void *)NT_X86_XSTATE, &all) < 0 ? 1 : all.length;
    }
    return found;
}

static struct vector made_whole(const struct vector *given, size whole) {
    size i;
    for (i = 0; i < whole; i++)
        state[i] = i < given->length ? given->base[i] : 0;
    *(size *)(state + XSTATE_BV) &= KNOWN;
    return (struct vector){state, whole};
}

/* glibc's takes its arguments variadically, which in this ABI is the same. */
long ptrace(long request, long process, void *address, void *data) {
    long result, word;
    struct vector whole;
    if (request >= PEEKTEXT && request <= PEEKUSER) {
        result = kernel(request, process, address, &word);
    } else {
        if (request == SETREGSET && address == (void *)NT_X86_XSTATE
            && whole_size(process) > ((struct vector *)data)->length) {
            whole = made_whole(data, whole_size(process));
            data = &whole;
        }
        result = word = kernel(request, process, address, data);
    }
    if (result >= 0)
        return word;
    *__errno_location() = (int)-result;
    return -1;
}
