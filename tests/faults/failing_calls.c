/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Makes the N-th call that changes something fail: preloaded into a daemon and a keeper by stage.py.
 *
 * Between them and the kernel, so that what is tested is the product as it is: libnftables' and libseccomp's calls,
 * asyncio's and those that ctypes makes are counted like Python's own. `strace -e inject` counts every call by its
 * name and every thread apart, and stops all of them; here one counter goes through all calls of a role in their
 * order, at no cost to the others.
 *
 * A process has a role by its place: daemon and keeper by VEMGR_FAULTS_ROLE, a child of them one depth more. So the
 * set-up process is depth 1 below the keeper, and the VE's init, which it clones, depth 2.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { SPACE = 1, DESCRIPTOR = 2, MEMORY = 4, PROCESS = 8, OTHER = 16 };

/* As stage.py has it. */
struct control {
	int32_t role;         /* whose calls are counted; 0 nobody's. Written last */
	int32_t at;           /* the call that fails; 0 none */
	int32_t on;           /* whether all later ones fail too */
	int32_t kinds;        /* which kinds of call are counted */
	int32_t shortened;    /* whether a write writes half of it, and the next one fails */
	_Atomic int32_t count;
	_Atomic int32_t hits; /* calls that failed */
	int32_t code;         /* errno of the first of them */
	char call[32], about[216];
};

static struct control *control;
static int base_role, depth;

#define NEXT(name) ({ static __typeof__(name) *next; if (!next) next = dlsym(RTLD_NEXT, #name); next; })

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("VEMGR_FAULTS"), *role = getenv("VEMGR_FAULTS_ROLE");
	if (!path || !role)
		return;
	int fd = NEXT(open64)(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		abort();
	control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (control == MAP_FAILED)
		abort();
	close(fd);
	base_role = atoi(role);
}

/* Whether this call is to fail; then errno is set. */
static int fails(enum kind kind, const char *call, const char *about, int code)
{
	struct control *c = control;

	if (!c || !base_role || c->role != base_role + depth || !(c->kinds & kind))
		return 0;
	if (c->kinds == SPACE && about && !strncmp(about, "/proc/", 6))
		return 0; /* a setting of the kernel's takes no space */
	int number = atomic_fetch_add(&c->count, 1) + 1;
	if (!c->at || (c->on ? number < c->at : number != c->at))
		return 0;
	if (atomic_fetch_add(&c->hits, 1) == 0) {
		c->code = code;
		snprintf(c->call, sizeof c->call, "%s", call);
		snprintf(c->about, sizeof c->about, "%s", about ? about : "");
	}
	errno = code;
	return 1;
}

static int is_code(const char *path)
{
	/* A module that is loaded late. Whether one can be loaded is no question of a verb's steps. */
	size_t length = path ? strlen(path) : 0;
	return (length > 3 && !strcmp(path + length - 3, ".py")) || (length > 4 && !strcmp(path + length - 4, ".pyc"))
	       || (path && (strstr(path, ".so") || strstr(path, "site-packages") || strstr(path, "/lib/python")));
}

static int open_fails(const char *call, const char *path, int flags)
{
	if (is_code(path))
		return 0;
	if (flags & O_CREAT)
		return fails(SPACE | DESCRIPTOR, call, path, control && control->kinds == DESCRIPTOR ? EMFILE : ENOSPC);
	return fails(DESCRIPTOR, call, path, EMFILE);
}

#define OPEN(name, before, at_arguments, ...)                                                   \
	int name(__VA_ARGS__ before, int flags, ...)                                            \
	{                                                                                       \
		va_list list;                                                                   \
		va_start(list, flags);                                                          \
		mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;         \
		va_end(list);                                                                   \
		return open_fails(#name, path, flags) ? -1 : NEXT(name)(at_arguments flags, mode); \
	}
#define COMMA ,
OPEN(open, const char *path, path COMMA)
OPEN(open64, const char *path, path COMMA)
OPEN(openat, const char *path, fd COMMA path COMMA, int fd COMMA)
OPEN(openat64, const char *path, fd COMMA path COMMA, int fd COMMA)

/* A call whose failure is -1. */
#define CALL(type, name, kind, about, code, parameters, arguments)                       \
	type name parameters                                                             \
	{                                                                                \
		return fails(kind, #name, about, code) ? -1 : NEXT(name) arguments;      \
	}

static const char *of_fd(int fd, char *text)
{
	char link[32];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, text, 199);
	text[length < 0 ? 0 : length] = 0;
	return text;
}

/* A pipe or socket of ours takes a few bytes in any case, and a log is no step of a verb. */
static int may_fail(int fd, char *text)
{
	of_fd(fd, text);
	return fd > 2 && strncmp(text, "pipe:", 5) && strncmp(text, "socket:", 7);
}

ssize_t write(int fd, const void *data, size_t size)
{
	char text[200];

	if (control && control->role && may_fail(fd, text) && fails(SPACE, "write", text, ENOSPC)) {
		if (!control->shortened || size < 2)
			return -1;
		/* Not at once: a disk that gets full takes a part first. */
		control->on = 1;
		return atomic_load(&control->hits) == 1 ? NEXT(write)(fd, data, size / 2) : -1;
	}
	return NEXT(write)(fd, data, size);
}

CALL(ssize_t, writev, SPACE, "", ENOSPC, (int fd, const struct iovec *v, int n), (fd, v, n))
CALL(int, fsync, OTHER, "", EIO, (int fd), (fd))
CALL(int, fdatasync, OTHER, "", EIO, (int fd), (fd))
CALL(int, syncfs, OTHER, "", EIO, (int fd), (fd))
CALL(int, ftruncate64, SPACE, "", ENOSPC, (int fd, off64_t size), (fd, size))
CALL(int, rename, SPACE, a, ENOSPC, (const char *a, const char *b), (a, b))
CALL(int, renameat, SPACE, a, ENOSPC, (int f, const char *a, int g, const char *b), (f, a, g, b))
CALL(int, mkdir, SPACE, a, ENOSPC, (const char *a, mode_t m), (a, m))
CALL(int, mkdirat, SPACE, a, ENOSPC, (int f, const char *a, mode_t m), (f, a, m))
CALL(int, symlink, SPACE, b, ENOSPC, (const char *a, const char *b), (a, b))
CALL(int, symlinkat, SPACE, b, ENOSPC, (const char *a, int f, const char *b), (a, f, b))
CALL(int, link, SPACE, b, ENOSPC, (const char *a, const char *b), (a, b))
CALL(int, linkat, SPACE, b, ENOSPC, (int f, const char *a, int g, const char *b, int o), (f, a, g, b, o))
CALL(int, mknod, SPACE, a, ENOSPC, (const char *a, mode_t m, dev_t d), (a, m, d))
CALL(int, mknodat, SPACE, a, ENOSPC, (int f, const char *a, mode_t m, dev_t d), (f, a, m, d))
CALL(int, mkfifo, SPACE, a, ENOSPC, (const char *a, mode_t m), (a, m))
CALL(int, mkfifoat, SPACE, a, ENOSPC, (int f, const char *a, mode_t m), (f, a, m))
CALL(int, fsetxattr, SPACE, n, ENOSPC, (int f, const char *n, const void *v, size_t s, int o), (f, n, v, s, o))
CALL(int, rmdir, OTHER, a, EIO, (const char *a), (a))
CALL(int, unlink, OTHER, a, EIO, (const char *a), (a))
CALL(int, unlinkat, OTHER, a, EIO, (int f, const char *a, int o), (f, a, o))
CALL(int, chmod, OTHER, a, EIO, (const char *a, mode_t m), (a, m))
CALL(int, fchmod, OTHER, "", EIO, (int f, mode_t m), (f, m))
CALL(int, fchmodat, OTHER, a, EIO, (int f, const char *a, mode_t m, int o), (f, a, m, o))
CALL(int, chown, OTHER, a, EIO, (const char *a, uid_t u, gid_t g), (a, u, g))
CALL(int, lchown, OTHER, a, EIO, (const char *a, uid_t u, gid_t g), (a, u, g))
CALL(int, fchown, OTHER, "", EIO, (int f, uid_t u, gid_t g), (f, u, g))
CALL(int, fchownat, OTHER, a, EIO, (int f, const char *a, uid_t u, gid_t g, int o), (f, a, u, g, o))
CALL(int, utimensat, OTHER, a, EIO, (int f, const char *a, const struct timespec t[2], int o), (f, a, t, o))
CALL(int, futimens, OTHER, "", EIO, (int f, const struct timespec t[2]), (f, t))
CALL(int, dup, DESCRIPTOR, "", EMFILE, (int fd), (fd))
CALL(int, dup2, OTHER, "", EBUSY, (int a, int b), (a, b))
CALL(int, dup3, OTHER, "", EBUSY, (int a, int b, int f), (a, b, f))
CALL(int, pipe, DESCRIPTOR, "", EMFILE, (int fds[2]), (fds))
CALL(int, pipe2, DESCRIPTOR, "", EMFILE, (int fds[2], int f), (fds, f))

int socket(int family, int type, int protocol)
{
	/* libnftables' own, without SOCK_CLOEXEC: its failure ends the process, so we look for a descriptor before. */
	int theirs = family == AF_NETLINK && protocol == NETLINK_NETFILTER && !(type & SOCK_CLOEXEC);
	return !theirs && fails(DESCRIPTOR, "socket", "", EMFILE) ? -1 : NEXT(socket)(family, type, protocol);
}

CALL(int, socketpair, DESCRIPTOR, "", EMFILE, (int a, int b, int c, int fds[2]), (a, b, c, fds))
CALL(int, memfd_create, DESCRIPTOR, a, EMFILE, (const char *a, unsigned f), (a, f))
CALL(int, epoll_create1, DESCRIPTOR, "", EMFILE, (int f), (f))
CALL(int, accept4, DESCRIPTOR, "", EMFILE, (int f, struct sockaddr *a, socklen_t *l, int o), (f, a, l, o))
CALL(int, bind, OTHER, "", ENOMEM, (int f, const struct sockaddr *a, socklen_t l), (f, a, l))
CALL(int, listen, OTHER, "", ENOMEM, (int f, int n), (f, n))
CALL(int, connect, OTHER, "", ENOMEM, (int f, const struct sockaddr *a, socklen_t l), (f, a, l))
CALL(int, setsockopt, OTHER, "", ENOMEM, (int f, int l, int n, const void *v, socklen_t s), (f, l, n, v, s))
CALL(int, setns, OTHER, "", ENOMEM, (int f, int t), (f, t))
CALL(int, unshare, MEMORY, "", ENOMEM, (int t), (t))
CALL(int, umount2, OTHER, a, EBUSY, (const char *a, int f), (a, f))
CALL(int, sethostname, OTHER, a, ENOMEM, (const char *a, size_t l), (a, l))
CALL(int, setgroups, OTHER, "", ENOMEM, (size_t n, const gid_t *g), (n, g))
CALL(int, setresuid, OTHER, "", EAGAIN, (uid_t a, uid_t b, uid_t c), (a, b, c))
CALL(int, setresgid, OTHER, "", EAGAIN, (gid_t a, gid_t b, gid_t c), (a, b, c))
CALL(int, chdir, OTHER, a, EIO, (const char *a), (a))
CALL(int, fchdir, OTHER, "", EIO, (int f), (f))
CALL(int, execve, MEMORY, a, ENOMEM, (const char *a, char *const v[], char *const e[]), (a, v, e))

/* Answers on sockets: the reply to the test itself must go through, or there is no outcome to look at. */
static int is_client(int fd)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof address;
	int type = 0;
	socklen_t size = sizeof type;
	return !getsockname(fd, (struct sockaddr *)&address, &length) && address.ss_family == AF_UNIX
	       && !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_STREAM;
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
	/* The other operations allocate nothing. */
	if (operation == EPOLL_CTL_ADD && !is_client(fd) && fails(MEMORY, "epoll_ctl", "", ENOMEM))
		return -1;
	return NEXT(epoll_ctl)(epoll, operation, fd, event);
}

static int send_fails(const char *call, int fd)
{
	return control && control->role && !is_client(fd) && fails(MEMORY, call, "", ENOBUFS);
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
	return send_fails("send", fd) ? -1 : NEXT(send)(fd, data, size, flags);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
	return send_fails("sendto", fd) ? -1 : NEXT(sendto)(fd, data, size, flags, to, length);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	return send_fails("sendmsg", fd) ? -1 : NEXT(sendmsg)(fd, message, flags);
}

DIR *opendir(const char *path)
{
	return fails(DESCRIPTOR, "opendir", path, EMFILE) ? NULL : NEXT(opendir)(path);
}

DIR *fdopendir(int fd)
{
	return fails(MEMORY, "fdopendir", "", ENOMEM) ? NULL : NEXT(fdopendir)(fd);
}

int fcntl64(int fd, int command, ...)
{
	va_list list;
	va_start(list, command);
	void *argument = va_arg(list, void *);
	va_end(list);
	if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) && fails(DESCRIPTOR, "fcntl", "F_DUPFD", EMFILE))
		return -1;
	return NEXT(fcntl64)(fd, command, argument);
}

int ioctl(int fd, unsigned long request, ...)
{
	char text[32];
	va_list list;
	va_start(list, request);
	void *argument = va_arg(list, void *);
	va_end(list);
	snprintf(text, sizeof text, "%#lx", request);
	return fails(OTHER, "ioctl", text, EIO) ? -1 : NEXT(ioctl)(fd, request, argument);
}

int prctl(int option, ...)
{
	char text[32];
	unsigned long a[4];
	va_list list;
	va_start(list, option);
	for (int i = 0; i < 4; i++)
		a[i] = va_arg(list, unsigned long);
	va_end(list);
	snprintf(text, sizeof text, "%d", option);
	return option != PR_CAPBSET_READ && fails(OTHER, "prctl", text, ENOMEM) ? -1 : NEXT(prctl)(option, a[0], a[1], a[2], a[3]);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
	return fails(PROCESS, "pthread_create", "", EAGAIN) ? EAGAIN : NEXT(pthread_create)(thread, attributes, start, argument);
}

pid_t fork(void)
{
	if (fails(PROCESS, "fork", "", EAGAIN))
		return -1;
	pid_t pid = NEXT(fork)();
	depth += pid == 0;
	return pid;
}

#define BY_NUMBER(name, kind, code) { SYS_##name, #name, kind, code }
static const struct { long number; const char *name; enum kind kind; int code; } by_number[] = {
	BY_NUMBER(open_tree, DESCRIPTOR, EMFILE), BY_NUMBER(move_mount, MEMORY, ENOMEM),
	BY_NUMBER(fsopen, DESCRIPTOR, EMFILE), BY_NUMBER(fsconfig, MEMORY, ENOMEM),
	BY_NUMBER(fsmount, DESCRIPTOR, EMFILE), BY_NUMBER(mount_setattr, MEMORY, ENOMEM),
	BY_NUMBER(clone3, PROCESS, EAGAIN), BY_NUMBER(close_range, OTHER, ENOMEM),
	BY_NUMBER(pivot_root, OTHER, EBUSY), BY_NUMBER(capset, OTHER, EPERM), BY_NUMBER(seccomp, MEMORY, ENOMEM),
	BY_NUMBER(bpf, MEMORY, ENOMEM), BY_NUMBER(openat2, DESCRIPTOR, EMFILE), BY_NUMBER(pidfd_open, DESCRIPTOR, EMFILE),
	BY_NUMBER(renameat2, OTHER, EIO),
	BY_NUMBER(pidfd_send_signal, OTHER, ENOMEM), BY_NUMBER(unshare, MEMORY, ENOMEM), BY_NUMBER(setns, OTHER, ENOMEM),
};

long syscall(long number, ...)
{
	long a[6];
	va_list list;
	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	for (size_t i = 0; i < sizeof by_number / sizeof *by_number; i++)
		if (by_number[i].number == number && fails(by_number[i].kind, by_number[i].name, "", by_number[i].code))
			return -1;
	long result = NEXT(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (number == SYS_clone3 && result == 0)
		depth++;
	return result;
}
