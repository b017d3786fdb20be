/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Process 1 of every instance that is compared: the same program in a VE, a container and a guest.
 *
 * Its first instruction reads the clock, and the time is written to the file or terminal that argv[1] names, as
 * "first NANOSECONDS\n" since 1970: CLOCK_REALTIME is the clock that time namespaces do not shift. Then it reaps what
 * falls to it, and ends at the signals by which runtimes ask an init to end, and never otherwise. Without an argument it
 * ends at once: a command that there is in every instance.
 *
 * Freestanding, as the spawner is (keeper/spawner.c), and for the same reason: with a C library to start, the first
 * instruction of interest would not be the first.
 */

typedef unsigned long u64;

#if defined(__x86_64__)
enum { NR_write = 1, NR_close = 3, NR_wait4 = 61, NR_clock_gettime = 228, NR_exit = 231,
       NR_openat = 257, NR_rt_sigprocmask = 14, NR_rt_sigtimedwait = 128 };

static long call(long nr, long a, long b, long c, long d)
{
	long result;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return result;
}

__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n\tcall begin\n\thlt\n");
#elif defined(__aarch64__)
enum { NR_write = 64, NR_close = 57, NR_wait4 = 260, NR_clock_gettime = 113,
       NR_exit = 94, NR_openat = 56, NR_rt_sigprocmask = 135, NR_rt_sigtimedwait = 137 };

static long call(long nr, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}

__asm__(".globl _start\n_start:\n\tmov x29,#0\n\tmov x0,sp\n\tbl begin\n");
#else
#error "no system call instruction for this machine"
#endif

enum { AT_FDCWD_ = -100, REALTIME = 0, WNOHANG_ = 1, WRITE_CREATE_NOCTTY = 01 | 0100 | 0400 };
enum { SIG_INT = 2, SIG_TERM = 15, SIG_CHLD = 17, SIG_PWR = 30, SIG_RTMIN3 = 37 };
#define BIT(signal) (1UL << ((signal) - 1))

static void stamp(const char *path, const u64 *now)
{
	char text[40] = "first ";
	char digits[24];
	int count = 0, length = 6;
	for (u64 rest = now[0] * 1000000000UL + now[1]; rest; rest /= 10)
		digits[count++] = '0' + rest % 10;
	while (count)
		text[length++] = digits[--count];
	text[length++] = '\n';
	long file = call(NR_openat, AT_FDCWD_, (long)path, WRITE_CREATE_NOCTTY, 0644);
	if (file >= 0) {
		call(NR_write, file, (long)text, length, 0);
		call(NR_close, file, 0, 0, 0);
	}
}

__attribute__((used, noreturn)) void begin(long *stack)
{
	u64 now[2] = { 0, 0 };
	u64 waited = BIT(SIG_INT) | BIT(SIG_TERM) | BIT(SIG_CHLD) | BIT(SIG_PWR) | BIT(SIG_RTMIN3);
	call(NR_clock_gettime, REALTIME, (long)now, 0, 0);
	if (stack[0] < 2)
		call(NR_exit, 0, 0, 0, 0);
	stamp((const char *)stack[2], now);
	call(NR_rt_sigprocmask, 0, (long)&waited, 0, 8);
	for (;;) {
		long signal = call(NR_rt_sigtimedwait, (long)&waited, 0, 0, 8);
		while (call(NR_wait4, -1, 0, WNOHANG_, 0) > 0)
			;
		if (signal > 0 && signal != SIG_CHLD)
			call(NR_exit, 0, 0, 0, 0);
	}
}
