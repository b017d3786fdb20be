/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The spawner: the process that VEs are forked from. It executes programs of system calls that the keeper has compiled
 * (program.py) and knows nothing of what they mean; what a VE is set up with is decided in setup.py and init.py.
 *
 * Why it is not Python: a fork of an interpreter copies the tables of some 20 MB and then faults on each page that it
 * touches, three times a start; a fork of this takes a tenth. And a VE without an init of its own keeps this process
 * as its process 1, at a few pages of memory (docs/adr/0010).
 *
 * It is freestanding: no C library, so nothing to initialise, no allocator, no locale, no environment.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#if defined(__x86_64__)
enum { NR_close = 3, NR_madvise = 28, NR_kill = 62, NR_wait4 = 61, NR_prctl = 157, NR_exit_group = 231, NR_read = 0,
       NR_rt_sigaction = 13, NR_rt_sigprocmask = 14, NR_rt_sigtimedwait = 128, NR_clock_gettime = 228, NR_umask = 95,
       NR_sendmsg = 46, NR_recvmsg = 47, NR_sendto = 44, NR_recvfrom = 45, NR_dup3 = 292 };

static long call(long nr, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n\tcall begin\n\thlt\n");
#elif defined(__aarch64__)
enum { NR_close = 57, NR_madvise = 233, NR_kill = 129, NR_wait4 = 260, NR_prctl = 167, NR_exit_group = 94,
       NR_read = 63, NR_rt_sigaction = 134, NR_rt_sigprocmask = 135, NR_rt_sigtimedwait = 137,
       NR_clock_gettime = 113, NR_umask = 166, NR_sendmsg = 211, NR_recvmsg = 212, NR_sendto = 206,
       NR_recvfrom = 207, NR_dup3 = 24 };

static long call(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}

__asm__(".globl _start\n_start:\n\tmov x29,#0\n\tmov x0,sp\n\tbl begin\n");
#else
#error "the spawner has no system call instruction for this machine"
#endif

enum { NR_clone3 = 435, NR_close_range = 436 };
enum { EINVAL_ = 22, EMFILE_ = 24, ETOOLONG = 90 };
enum { CLONE_NEWNS = 0x20000, CLONE_PARENT = 0x8000, CLONE_PIDFD = 0x1000 };
#define CLONE_INTO_CGROUP 0x200000000UL
enum { SIG_CHLD = 17, SIG_INT = 2, SIG_KILL = 9, SIG_PWR = 30, SIG_TERM = 15, SIG_CONT = 18, SIG_HALT = 37 };
enum { WNOHANG_ = 1, PR_SET_PDEATHSIG = 1, PR_SET_DUMPABLE = 4, PR_SET_NAME = 15, MADV_DONTNEED_ = 4 };

#define CALL1(nr, a) call(nr, (long)(a), 0, 0, 0, 0, 0)
#define CALL2(nr, a, b) call(nr, (long)(a), (long)(b), 0, 0, 0, 0)
#define CALL3(nr, a, b, c) call(nr, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define CALL4(nr, a, b, c, d) call(nr, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

/* The layout of a program; program.py writes it. */

enum { IMMEDIATE, DATA, REGISTER };		/* what an argument is */
enum { NOWHERE = 255, REGISTERS = 96 };
enum { ANY_ERROR = 0x7fff };
enum { CHANNEL, CGROUP };			/* registers that we fill in */
enum {						/* what is no system call has a negative number */
	LOAD32 = -1, STORE32 = -2, STORE64 = -3, DECIMAL = -4, CLONE = -5, WAIT = -6, NETLINK = -7, SAME = -8,
	EQUAL = -9, EXIT = -10, STAY = -11, JUMP = -12, REPORT_TO = -13,
};

struct operation {
	short number;
	u8 into;		/* register for the result */
	u8 log;			/* register of a descriptor that explains a failure when it is read */
	u16 error[2];		/* failures that are expected, and how many operations each then skips */
	u8 skip[2], skip_after;
	u8 kind[6];
	u8 unused[7];
	long argument[6];
};

struct program {
	u32 count, size;	/* operations, bytes of everything */
	u32 scratch, unused;	/* bytes behind it that it writes to */
	struct operation operations[];
};

struct report {
	u32 kind, operation, error;
	char detail[512];
};

enum { ROOM = 1 << 18 };
static u8 room[ROOM] __attribute__((aligned(4096)));
static long registers[REGISTERS];
static long report_fd = -1;
static char *own_name, *own_end;	/* what ps shows: argv */

void *memset(void *where, int byte, u64 count)
{
	u8 *at = where;
	while (count--)
		*at++ = (u8)byte;
	return where;
}

static void __attribute__((noreturn)) leave(long status)
{
	for (;;)
		CALL1(NR_exit_group, status);
}

static int differ(const u8 *one, const u8 *other, long length)
{
	while (length--)
		if (*one++ != *other++)
			return 1;
	return 0;
}

static long decimal(char *where, long number)
{
	char digits[24];
	int count = 0, at = 0;
	do
		digits[count++] = (char)('0' + number % 10);
	while (number /= 10);
	while (count)
		where[at++] = digits[--count];
	where[at] = 0;
	return at;
}

/* Process 1 of a VE that has no init of its own: reaps, and ends the VE in good order. */

static int reap(void)
{
	long pid;
	while ((pid = CALL4(NR_wait4, -1, 0, WNOHANG_, 0)) > 0)
		;
	return pid == 0;
}

static long milliseconds(void)
{
	long now[2] = {0, 0};
	CALL2(NR_clock_gettime, 1, now);
	return now[0] * 1000 + now[1] / 1000000;
}

static const u64 child_signal = 1UL << (SIG_CHLD - 1);
static const int ending_signals[] = {SIG_TERM, SIG_INT, SIG_PWR, SIG_HALT};

static void __attribute__((noreturn)) end_everything(void)
{
	/* Commands from outside are no children of ours but in our process namespace: kill(-1) reaches them, and
	 * says ESRCH when nobody is left. */
	static const struct { int signal; long patience; } steps[] = {{SIG_TERM, 5000}, {SIG_KILL, 1000}};
	const long nap[2] = {0, 20000000};
	for (int step = 0; step < 2; step++) {
		long deadline = milliseconds() + steps[step].patience;
		CALL2(NR_kill, -1, steps[step].signal);
		CALL2(NR_kill, -1, SIG_CONT);
		while (milliseconds() < deadline) {
			reap();
			if (CALL2(NR_kill, -1, 0) < 0)
				leave(0);
			CALL4(NR_rt_sigtimedwait, &child_signal, 0, nap, 8);
		}
	}
	leave(0);
}

static void never_called(int number)
{
	(void)number;
}

static void __attribute__((noreturn)) stay(void)
{
	static const char name[] = "vemgr-init";
	u64 watched = child_signal;
	/* That an ending signal has a handler tells the stop verb that we are ready for it. It is blocked and waited
	 * for: the handler is never called, so it needs no way back. */
	struct { void (*handler)(int); u64 flags; void *restorer; u64 mask; } action = {never_called, 0, 0, 0};
	CALL3(NR_madvise, room, ROOM, MADV_DONTNEED_);
	for (u32 i = 0; own_name + i < own_end; i++)
		own_name[i] = i < sizeof(name) ? name[i] : 0;
	CALL2(NR_prctl, PR_SET_NAME, name);
	for (u32 i = 0; i < sizeof(ending_signals) / sizeof(*ending_signals); i++)
		watched |= 1UL << (ending_signals[i] - 1);
	CALL4(NR_rt_sigprocmask, 0, &watched, 0, 8);
	for (u32 i = 0; i < sizeof(ending_signals) / sizeof(*ending_signals); i++)
		CALL4(NR_rt_sigaction, ending_signals[i], &action, 0, 8);
	for (;;) {
		long signal = CALL4(NR_rt_sigtimedwait, &watched, 0, 0, 8);
		if (signal > 0 && signal != SIG_CHLD)
			end_everything();
		reap();
	}
}

/* One rtnetlink datagram of several messages. Only the last asks for an acknowledgement, so what comes first is the
 * first failure or the end. Returns -errno; `answer` then has the kernel's words. */
static long netlink(long socket, const void *messages, long length, char *answer, long most)
{
	struct { u32 length; u16 type, flags; u32 sequence, port; int error; } *head = (void *)answer;
	long result = call(NR_sendto, socket, (long)messages, length, 0, 0, 0);
	if (result < 0)
		return result;
	for (;;) {
		result = call(NR_recvfrom, socket, (long)answer, most, 0, 0, 0);
		if (result < 0)
			return result;
		if (result >= (long)sizeof(*head) && head->type == 2)
			return head->error;
	}
}

static void __attribute__((noreturn)) fail(const struct operation *operation, long index, long error)
{
	static struct report report;
	long length = 12, more;
	report.kind = 0;
	report.operation = (u32)index;
	report.error = (u32)error;
	if (report_fd < 0)
		leave(error);
	if (operation->number == NETLINK) {
		const char *answer = (const char *)room + operation->argument[3];
		while (length < 12 + 256) {
			report.detail[length - 12] = answer[length - 12];
			length++;
		}
	} else if (operation->log != NOWHERE) {
		more = CALL3(NR_read, registers[operation->log], report.detail, sizeof(report.detail));
		length += more > 0 ? more : 0;
	}
	call(NR_sendto, report_fd, (long)&report, length, 0x4000 /* MSG_NOSIGNAL */, 0, 0);
	leave(1);
}

static long execute(const struct operation *operation, const long *value, long *next)
{
	long result;
	int status = 0;
	switch (operation->number) {
	case LOAD32:
		return *(const int *)value[0];
	case STORE32:
		*(int *)value[0] = (int)value[1];
		return 0;
	case STORE64:
		*(long *)value[0] = value[1];
		return 0;
	case DECIMAL:
		return decimal((char *)value[0], value[1]);
	case CLONE:
		result = CALL2(NR_clone3, value[0], value[1]);
		if (result == 0)
			*next = value[2];
		return result;
	case WAIT:	/* for a child that ends with errno as its status */
		do
			result = CALL4(NR_wait4, value[0], &status, 0, 0);
		while (result == -4);
		return result < 0 ? result : (status & 0x7f) ? -EINVAL_ : -(status >> 8 & 0xff);
	case NETLINK:
		return netlink(value[0], (void *)value[1], value[2], (char *)value[3], value[4]);
	case SAME:
		return value[0] == value[1] ? 0 : -EINVAL_;
	case EQUAL:
		return differ((u8 *)value[0], (u8 *)value[1], value[2]) ? -EINVAL_ : 0;
	case JUMP:
		*next = value[0];
		return 0;
	case REPORT_TO:
		report_fd = value[0];
		return 0;
	case EXIT:
		leave(value[0]);
	case STAY:
		stay();
	default:
		return call(operation->number, value[0], value[1], value[2], value[3], value[4], value[5]);
	}
}

static void __attribute__((noreturn)) run(const struct program *program)
{
	for (long at = 0; at < program->count;) {
		const struct operation *operation = &program->operations[at];
		long value[6], next = at + 1, result;
		for (int i = 0; i < 6; i++) {
			long argument = operation->argument[i];
			value[i] = operation->kind[i] == DATA ? (long)room + argument
				 : operation->kind[i] == REGISTER ? registers[argument] : argument;
		}
		result = execute(operation, value, &next);
		if (result < 0 && result > -4096) {
			int which = 0;
			while (operation->error[which] != -result && operation->error[which] != ANY_ERROR)
				if (++which == 2)
					fail(operation, at, -result);
			at += 1 + operation->skip[which];
			continue;
		}
		if (operation->into != NOWHERE)
			registers[operation->into] = result;
		at = next == at + 1 ? next + operation->skip_after : next;
	}
	leave(0);
}

/* The keeper's requests: a program, with the set-up process's end of a channel and the VE's cgroup. */

struct part { void *base; u64 length; };
struct message { void *name; u32 name_length, pad0; struct part *parts; u64 count; void *control;
		 u64 control_length; u32 flags, pad1; };
struct rights { u64 length; u32 level, type; int fd[2]; };

enum { SOL_SOCKET_ = 1, SCM_RIGHTS_ = 1, CMSG_CLOEXEC = 0x40000000, NOSIGNAL = 0x4000, TRUNCATED = 0x20 };

static void answer(long request, int pid, int pidfd)
{
	struct rights rights = {20, SOL_SOCKET_, SCM_RIGHTS_, {pidfd, 0}};
	struct part part = {&pid, sizeof(pid)};
	struct message message = {0, 0, 0, &part, 1, &rights, pidfd < 0 ? 0 : sizeof(rights), 0, 0};
	CALL3(NR_sendmsg, request, &message, NOSIGNAL);
}

static void serve(long keeper)
{
	struct rights rights = {0};
	struct part part = {room, ROOM};
	struct message message = {0, 0, 0, &part, 1, &rights, sizeof(rights), 0, 0};
	long length = CALL3(NR_recvmsg, keeper, &message, CMSG_CLOEXEC);
	const struct program *program = (const void *)room;
	int pidfd = -1;
	u64 clone[11] = {CLONE_NEWNS | CLONE_PARENT | CLONE_PIDFD | CLONE_INTO_CGROUP, (u64)&pidfd};
	long pid;

	if (length == 0)
		leave(0);	/* the keeper has ended */
	if (length < 0)
		return;
	if (message.control_length != 24) {	/* the kernel drops what we have no descriptor free for */
		if (message.control_length == 20)
			CALL1(NR_close, rights.fd[0]);
		answer(keeper, -EMFILE_, -1);
		return;
	}
	if ((u64)length < sizeof(*program) || (message.flags & TRUNCATED) || program->size != (u64)length
	    || program->scratch > ROOM - (u64)length
	    || program->count > ((u64)length - sizeof(*program)) / sizeof(struct operation)) {
		pid = -ETOOLONG;
	} else {
		clone[10] = (u64)rights.fd[1];
		pid = CALL2(NR_clone3, clone, sizeof(clone));
		if (pid == 0) {
			CALL1(NR_close, keeper);
			registers[CHANNEL] = report_fd = rights.fd[0];
			registers[CGROUP] = rights.fd[1];
			run(program);
		}
		if (pid < 0)
			pidfd = -1;	/* where the cgroup has just gone, the kernel takes back a number that it gave */
	}
	answer(keeper, (int)pid, pidfd);
	CALL1(NR_close, rights.fd[0]);
	CALL1(NR_close, rights.fd[1]);
	if (pidfd >= 0)
		CALL1(NR_close, pidfd);
}

/* argv[1] is the number of the socket to the keeper. */
void __attribute__((noreturn, used)) begin(const long *stack)
{
	enum { OWN = 3 };
	long keeper = 0;

	if (stack[0] != 2)
		leave(2);
	own_name = (char *)stack[1];
	for (own_end = (char *)stack[2]; *own_end; own_end++)
		keeper = keeper * 10 + *own_end - '0';
	/* What is forked from here stands with one foot in a VE: nobody there may trace it or see its descriptors. */
	CALL4(NR_prctl, PR_SET_DUMPABLE, 0, 0, 0);
	CALL4(NR_prctl, PR_SET_PDEATHSIG, SIG_KILL, 0, 0);
	CALL1(NR_umask, 0);
	/* Whatever else the keeper has left open would end up in every VE. */
	if (keeper != OWN)
		CALL3(NR_dup3, keeper, OWN, 0);
	CALL3(NR_close_range, OWN + 1, 0xffffffff, 0);
	for (;;)
		serve(OWN);
}
