// SPDX-License-Identifier: GPL-2.0-or-later
// What is measured where no program of the distribution is at hand: one static program, the same in each instance.
//
//     probe NAME [ARGUMENT...]
//
// It prints lines "name value", among them "elapsed NANOSECONDS": how long it says it took by its own clock, so that the
// host can tell an instance whose clock goes wrong. Each figure is of one CPU. An error is one line on standard error and
// exit code 1.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, CHUNK = 1 << 20, MOST_SAMPLES = 1 << 20 };

static volatile double sink;  // what a compiler must not leave out

static void fail(const char *what)
{
    fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static uint64_t dice(void)  // xorshift64 (Marsaglia 2003)
{
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

// A tenth of a second of `batch` after one that is not counted: enough for a per mille with a clock of 100 ns.
static double each(uint64_t (*batch)(void), uint64_t *elapsed)
{
    batch();
    uint64_t start = now(), count = 0, time;
    do {
        count += batch();
        time = now() - start;
    } while (time < 100 * 1000 * 1000);
    *elapsed = time;
    return (double)time / count;
}

static void per_call(const char *name, uint64_t (*batch)(void), double unit)
{
    uint64_t elapsed;
    double found = each(batch, &elapsed);
    printf("elapsed %llu\n%s %.6g\n", (unsigned long long)elapsed, name, found / unit);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void print_times(uint64_t *samples, size_t count, uint64_t elapsed)  // nanoseconds, printed as microseconds
{
    qsort(samples, count, sizeof *samples, compare);
    printf("elapsed %llu\nmedian %.6g\np99 %.6g\nrate %.6g\n", (unsigned long long)elapsed, samples[count / 2] / 1e3,
           samples[(count * 99 + 99) / 100 - 1] / 1e3, count * 1e9 / elapsed);
}

// system calls and processes

static uint64_t system_calls(void)
{
    for (int i = 0; i < 1000; i++)
        syscall(SYS_getppid);  // which no C library remembers
    return 1000;
}

static int there[2], back[2];

static uint64_t switches(void)
{
    char byte = 0;
    for (int i = 0; i < 200; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            fail("pipe");
    return 400;  // there and back
}

static void on_one_cpu(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set))
        fail("sched_getaffinity");
    int cpu = 0;
    while (!CPU_ISSET(cpu, &set))
        cpu++;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        fail("sched_setaffinity");
}

static void context_switch(void)
{
    on_one_cpu();
    if (pipe(there) || pipe(back))
        fail("pipe");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        char byte;
        close(there[1]);
        while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
            ;
        _exit(0);
    }
    per_call("ns", switches, 1);
    close(there[1]);
    waitpid(child, NULL, 0);
}

static char *self;

static uint64_t spawn(int executes)
{
    for (int i = 0; i < 10; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (!child) {
            if (executes)
                execl(self, self, "nothing", (char *)NULL);
            _exit(executes);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status)
            fail("the child did not run");
    }
    return 10;
}

static uint64_t forks(void) { return spawn(0); }
static uint64_t executions(void) { return spawn(1); }

// memory

static void *map(size_t size)
{
    void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED)
        fail("mmap");
    return found;
}

static uint64_t faults(void)
{
    enum { PAGES = 2048 };
    char *area = map(PAGES * BLOCK);
    madvise(area, PAGES * BLOCK, MADV_NOHUGEPAGE);
    for (int i = 0; i < PAGES; i++)
        area[i * BLOCK] = 1;
    munmap(area, PAGES * BLOCK);
    return PAGES;
}

enum { DOUBLES = 6 << 20 };  // 48 MiB each, more than most last caches

static void triad(void)
{
    double *a = map(DOUBLES * 8), *b = map(DOUBLES * 8), *c = map(DOUBLES * 8);
    for (int i = 0; i < DOUBLES; i++) {
        a[i] = 0;
        b[i] = i;
        c[i] = 1;
    }
    double best = 0;
    uint64_t first = now();
    for (int round = 0; round < 5; round++) {
        uint64_t start = now();
        for (int i = 0; i < DOUBLES; i++)
            a[i] = b[i] + 3.0 * c[i];
        double rate = 24.0 * DOUBLES / (now() - start) * 1e3;  // MB/s; STREAM takes the best of several, too
        best = rate > best ? rate : best;
        sink = a[round];
    }
    printf("elapsed %llu\nrate %.6g\n", (unsigned long long)(now() - first), best);
}

enum { SLOTS = 8 << 20 };  // 64 MiB
static uint64_t *chain, at;

static uint64_t steps(void)
{
    for (int i = 0; i < 10000; i++)
        at = chain[at];
    sink = at;
    return 10000;
}

static void random_access(void)
{
    chain = map(SLOTS * 8);
    for (uint64_t i = 0; i < SLOTS; i++)
        chain[i] = i;
    for (uint64_t i = SLOTS - 1; i; i--) {  // one cycle through all of them (Sattolo 1986)
        uint64_t other = dice() % i, kept = chain[i];
        chain[i] = chain[other];
        chain[other] = kept;
    }
    per_call("ns", steps, 1);
}

// computing

static uint64_t integers(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < 100000; i++)
        sum += dice() * 0x9E3779B97F4A7C15ull >> 32;
    sink = sum;
    return 100000;
}

static uint64_t floats(void)  // points of a Mandelbrot set: a chain of multiplications and additions
{
    uint64_t done = 0;
    for (int point = 0; point < 64; point++) {
        double x = 0, y = 0, cx = -0.5 + point * 0.001, cy = 0.1;
        for (int i = 0; i < 1000; i++) {
            double next = x * x - y * y + cx;
            y = 2 * x * y + cy;
            x = next;
        }
        sink = x;
        done += 7000;
    }
    return done;
}

static void rate_of(const char *name, uint64_t (*batch)(void))
{
    uint64_t elapsed;
    double found = each(batch, &elapsed);
    printf("elapsed %llu\n%s %.6g\n", (unsigned long long)elapsed, name, 1e3 / found);  // millions a second
}

// files

static int open_file(const char *path, int flags)  // past the page cache where the file system can do that
{
    int fd = open(path, flags | O_DIRECT | O_CLOEXEC, 0600);
    int direct = fd >= 0;
    if (!direct)
        fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0)
        fail(path);
    printf("direct %d\n", direct);
    return fd;
}

static char *aligned(size_t size)
{
    char *buffer = map(size);
    for (size_t i = 0; i < size; i += 8)
        *(uint64_t *)(buffer + i) = dice();  // nothing that a disk could compress or leave out
    return buffer;
}

static void file_write(const char *path, size_t megabytes)
{
    int fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
    char *buffer = aligned(CHUNK);
    uint64_t start = now();
    for (size_t i = 0; i < megabytes; i++)
        if (write(fd, buffer, CHUNK) != CHUNK)
            fail("write");
    if (fdatasync(fd))
        fail("fdatasync");
    uint64_t elapsed = now() - start;
    printf("elapsed %llu\nrate %.6g\n", (unsigned long long)elapsed, megabytes * (double)CHUNK / elapsed * 1e3);
}

static void file_read(const char *path)
{
    int fd = open_file(path, O_RDONLY);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    char *buffer = aligned(CHUNK);
    uint64_t start = now(), bytes = 0;
    ssize_t got;
    while ((got = read(fd, buffer, CHUNK)) > 0)
        bytes += got;
    if (got < 0)
        fail("read");
    uint64_t elapsed = now() - start;
    printf("elapsed %llu\nrate %.6g\n", (unsigned long long)elapsed, (double)bytes / elapsed * 1e3);
}

static uint64_t samples[MOST_SAMPLES];

static void file_random(const char *path, int writes, double seconds)
{
    int fd = open_file(path, O_RDWR);
    off_t blocks = lseek(fd, 0, SEEK_END) / BLOCK;
    if (blocks < 1)
        fail("the file is empty");
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    char *buffer = aligned(BLOCK);
    uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9), before = start;
    size_t count = 0;
    while (before < end && count < MOST_SAMPLES) {
        off_t place = (off_t)(dice() % blocks) * BLOCK;
        ssize_t done = writes ? pwrite(fd, buffer, BLOCK, place) : pread(fd, buffer, BLOCK, place);
        if (done != BLOCK)
            fail(writes ? "pwrite" : "pread");
        uint64_t after = now();
        samples[count++] = after - before;
        before = after;
    }
    print_times(samples, count, before - start);
}

static void file_sync(const char *path, double seconds)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        fail(path);
    char *buffer = aligned(BLOCK);
    uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9), before = start;
    size_t count = 0;
    while ((before < end || count < 3) && count < MOST_SAMPLES) {
        if (pwrite(fd, buffer, BLOCK, (off_t)count % 256 * BLOCK) != BLOCK || fdatasync(fd))
            fail("fdatasync");
        uint64_t after = now();
        samples[count++] = after - before;
        before = after;
    }
    print_times(samples, count, before - start);
}

// the network: a client's first byte is 'r' for an echo of each further byte, 's' for as many bytes as it can take

static struct sockaddr_in place(const char *address, int port)
{
    struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &found.sin_addr) != 1) {
        errno = EINVAL;
        fail(address);
    }
    return found;
}

static void serve_one(int connection)
{
    static char buffer[1 << 16];
    int one = 1;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    ssize_t got = read(connection, buffer, 1);
    if (got == 1 && buffer[0] == 's')
        while (write(connection, buffer, sizeof buffer) > 0)
            ;
    else if (got == 1)
        while ((got = read(connection, buffer, sizeof buffer)) > 0 && write(connection, buffer, got) == got)
            ;
    _exit(0);
}

static void serve(int port)
{
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in any = place("0.0.0.0", port);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 16))
        fail("bind");
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            fail("accept");
        if (!fork())
            serve_one(connection);
        close(connection);
    }
}

static int reach(const char *address, int port, double patience, char mode)  // a server needs a moment to come up
{
    struct sockaddr_in server = place(address, port);
    uint64_t end = now() + (uint64_t)(patience * 1e9);
    for (;;) {
        int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
        struct timeval limit = {.tv_sec = 10};
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        if (!connect(connection, (struct sockaddr *)&server, sizeof server)) {
            if (write(connection, &mode, 1) != 1)
                fail("write");
            return connection;
        }
        close(connection);
        if (now() > end)
            fail("connect");
        usleep(20000);
    }
}

static void request_response(const char *address, int port, double seconds)
{
    int connection = reach(address, port, 10, 'r');
    char byte = 1;
    for (int i = 0; i < 100; i++)
        if (write(connection, &byte, 1) != 1 || read(connection, &byte, 1) != 1)
            fail("request");
    uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9), before = start;
    size_t count = 0;
    while (before < end && count < MOST_SAMPLES) {
        if (write(connection, &byte, 1) != 1 || read(connection, &byte, 1) != 1)
            fail("request");
        uint64_t after = now();
        samples[count++] = after - before;
        before = after;
    }
    print_times(samples, count, before - start);
}

static void stream(const char *address, int port, double seconds)
{
    static char buffer[1 << 17];
    int connection = reach(address, port, 10, 's');
    uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9), bytes = 0, time;
    do {
        ssize_t got = read(connection, buffer, sizeof buffer);
        if (got <= 0)
            fail("read");
        bytes += got;
        time = now();
    } while (time < end);
    printf("elapsed %llu\nrate %.6g\n", (unsigned long long)(time - start), bytes * 1e3 / (time - start));
}

// An application in small: each transaction computes, looks about in memory, starts a process now and then and writes.
// `open loop` it is not: the next begins when the one before has ended.
static void work(const char *path, double seconds)
{
    enum { AREA = 4 << 20 };
    uint64_t *area = map(AREA);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        fail(path);
    char *buffer = aligned(BLOCK);
    uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9), before = start, sum = 0;
    size_t count = 0;
    while ((before < end || count < 3) && count < MOST_SAMPLES) {
        for (int i = 0; i < 20000; i++) {
            uint64_t *slot = &area[dice() % (AREA / 8)];
            sum += *slot += i;
        }
        if (pwrite(fd, buffer, BLOCK, (off_t)count % 256 * BLOCK) != BLOCK)
            fail("pwrite");
        if (count % 16 == 0) {
            pid_t child = fork();
            if (child < 0)
                fail("fork");
            if (!child)
                _exit(0);
            waitpid(child, NULL, 0);
        }
        uint64_t after = now();
        samples[count++] = after - before;
        before = after;
    }
    sink = sum;
    print_times(samples, count, before - start);
}

static void timed(char **words)  // a program to its end; what it prints is of no interest
{
    uint64_t start = now();
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 1);
        execvp(words[0], words);
        _exit(127);
    }
    int status;
    if (waitpid(child, &status, 0) != child)
        fail("waitpid");
    uint64_t elapsed = now() - start;
    if (status) {
        fprintf(stderr, "probe: %s ended with status %d\n", words[0], status);
        exit(1);
    }
    printf("elapsed %llu\nseconds %.6g\n", (unsigned long long)elapsed, elapsed / 1e9);
}

// An update as dpkg(1) applies it: files are written anew beside the old ones, synced, and renamed over them. In the order
// of their names, so that it is the same files everywhere, and on one file system.
static void replace_file(const char *path, const struct stat *old)
{
    char beside[PATH_MAX];
    if (snprintf(beside, sizeof beside, "%s.vemgr-new", path) >= (int)sizeof beside)
        return;
    int from = open(path, O_RDONLY | O_CLOEXEC), to = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    char *buffer = malloc(old->st_size);
    if (from < 0 || to < 0 || !buffer || read(from, buffer, old->st_size) != old->st_size ||
        write(to, buffer, old->st_size) != old->st_size)
        fail(path);
    int owned = old->st_uid == geteuid() && old->st_gid == getegid();  // some containers' root may not give files away
    if ((!owned && fchown(to, old->st_uid, old->st_gid)) || fchmod(to, old->st_mode & 07777) || fsync(to) ||
        rename(beside, path))
        fail(beside);
    free(buffer);
    close(from);
    close(to);
}

static size_t update_below(const char *directory, dev_t device, size_t most)  // bytes replaced, at most so many
{
    struct dirent **names;
    int count = scandir(directory, &names, NULL, alphasort);
    size_t done = 0;
    for (int i = 0; i < count; i++) {
        char path[PATH_MAX];
        struct stat found;
        int length = snprintf(path, sizeof path, "%s/%s", directory, names[i]->d_name);
        if (names[i]->d_name[0] != '.' && length < (int)sizeof path && !lstat(path, &found)) {
            // Files of an overlay have the device of their layer (overlayfs.rst), directories that of the overlay.
            if (S_ISDIR(found.st_mode) && found.st_dev == device)
                done += update_below(path, device, most - done);
            else if (S_ISREG(found.st_mode) && found.st_size && done + found.st_size <= most) {
                replace_file(path, &found);
                done += found.st_size;
            }
        }
        free(names[i]);
    }
    if (count >= 0)
        free(names);
    return done;
}

static void update(const char *directory, size_t megabytes)
{
    struct stat top;
    if (stat(directory, &top))
        fail(directory);
    uint64_t start = now();
    size_t bytes = update_below(directory, top.st_dev, megabytes << 20);
    if (!bytes)
        fail("there is nothing to update");
    printf("elapsed %llu\nbytes %zu\n", (unsigned long long)(now() - start), bytes);
}

// bad neighbours (the Isolation Benchmark Suite, Matthews et al. 2007, has these kinds); they go on until they are killed

// A bad neighbour that has not come, or has gone, would be taken for a good wall: it leaves its number in a file.
static void stressing(const char *file)
{
    uint64_t end = now() + 10000000000ull;
    for (;;) {
        FILE *stream = fopen(file, "r");
        int pid = 0;
        if (stream && fscanf(stream, "%d", &pid) == 1) {
            char path[32], state = 'X';
            snprintf(path, sizeof path, "/proc/%d/stat", pid);
            FILE *status = fopen(path, "r");
            if (!status || fscanf(status, "%*d (%*[^)]) %c", &state) != 1 || strchr("ZX", state))  // proc_pid_stat(5)
                fail("the stressor has ended");
            printf("elapsed 0\n");
            return;
        }
        if (stream)
            fclose(stream);
        if (now() > end)
            fail("there is no stressor");
        usleep(10000);
    }
}

static void send_datagrams(const char *address, int port, double seconds)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int connection = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in server = place(address, port);
    static char datagram[1400];
    for (uint64_t end = now() + (uint64_t)(seconds * 1e9); now() < end;)
        sendto(connection, datagram, sizeof datagram, 0, (struct sockaddr *)&server, sizeof server);
}

static void stress(const char *kind, const char *path, const char *file)
{
    signal(SIGCHLD, SIG_IGN);
    FILE *stream = fopen(file, "w");
    if (!stream || fprintf(stream, "%d\n", getpid()) < 0 || fclose(stream))
        fail(file);
    if (!strcmp(kind, "cpu")) {
        for (int i = 0; i < 16 && fork(); i++)
            ;
        for (;;)
            integers();
    } else if (!strcmp(kind, "memory")) {
        for (;;) {  // dirty more and more, as far as it is let, and again
            size_t size = 64 << 20;
            char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (area == MAP_FAILED)
                continue;
            for (size_t i = 0; i < size; i += BLOCK)
                area[i] = 1;
            munmap(area, size);
        }
    } else if (!strcmp(kind, "disk")) {
        int fd = open_file(path, O_RDWR | O_CREAT | O_TRUNC);
        char *buffer = aligned(CHUNK);
        for (size_t i = 0;; i++)
            if (pwrite(fd, buffer, CHUNK, (off_t)(i % 64) * CHUNK) != CHUNK || (i % 16 == 15 && fdatasync(fd)))
                fail("pwrite");
    } else if (!strcmp(kind, "fork")) {
        for (;;)
            if (!fork()) {
                usleep(1000);
                _exit(0);
            }
    } else if (!strcmp(kind, "network")) {
        int connection = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in discard = place(path, 9);
        static char datagram[1400];
        for (;;)
            sendto(connection, datagram, sizeof datagram, 0, (struct sockaddr *)&discard, sizeof discard);
    } else if (!strcmp(kind, "receive")) {  // what somebody else sends
        int connection = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in discard = place("0.0.0.0", 9);
        static char datagram[1500];
        if (bind(connection, (struct sockaddr *)&discard, sizeof discard))
            fail("bind");
        for (;;)
            recv(connection, datagram, sizeof datagram, 0);
    } else if (!strcmp(kind, "log")) {
        int console = open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC);
        if (console < 0)
            fail(path);
        static const char line[] = "a line of a log that nobody has asked for, again and again and again\n";
        for (;;)
            if (write(console, line, sizeof line - 1) < 0 && errno != EAGAIN)
                fail("write");
    }
    errno = EINVAL;
    fail(kind);
}

int main(int count, char **words)
{
    const char *name = count > 1 ? words[1] : "", *argument = count > 2 ? words[2] : "";
    double third = count > 3 ? atof(words[3]) : 0, fourth = count > 4 ? atof(words[4]) : 0;
    self = words[0];
    setvbuf(stdout, NULL, _IOFBF, BUFSIZ);
    if (!strcmp(name, "nothing"))
        return 0;
    if (!strcmp(name, "syscall"))
        per_call("ns", system_calls, 1);
    else if (!strcmp(name, "switch"))
        context_switch();
    else if (!strcmp(name, "fork"))
        per_call("us", forks, 1e3);
    else if (!strcmp(name, "exec"))
        per_call("us", executions, 1e3);
    else if (!strcmp(name, "fault"))
        per_call("ns", faults, 1);
    else if (!strcmp(name, "triad"))
        triad();
    else if (!strcmp(name, "random-access"))
        random_access();
    else if (!strcmp(name, "integer"))
        rate_of("rate", integers);
    else if (!strcmp(name, "float"))
        rate_of("rate", floats);
    else if (!strcmp(name, "write") && count == 4)
        file_write(argument, (size_t)third);
    else if (!strcmp(name, "read") && count == 3)
        file_read(argument);
    else if ((!strcmp(name, "random-read") || !strcmp(name, "random-write")) && count == 4)
        file_random(argument, name[7] == 'w', third);
    else if (!strcmp(name, "sync") && count == 4)
        file_sync(argument, third);
    else if (!strcmp(name, "serve") && count == 3)
        serve(atoi(argument));
    else if (!strcmp(name, "request") && count == 5)
        request_response(argument, (int)third, fourth);
    else if (!strcmp(name, "stream") && count == 5)
        stream(argument, (int)third, fourth);
    else if (!strcmp(name, "work") && count == 4)
        work(argument, third);
    else if (!strcmp(name, "time") && count > 2)
        timed(words + 2);
    else if (!strcmp(name, "send") && count == 5)
        send_datagrams(argument, (int)third, fourth);
    else if (!strcmp(name, "update") && count == 4)
        update(argument, (size_t)third);
    else if (!strcmp(name, "stressing") && count == 3)
        stressing(argument);
    else if (!strcmp(name, "stress") && count == 5)
        stress(argument, words[3], words[4]);
    else {
        fprintf(stderr, "probe: no such work, or not as many arguments: %s\n", name);
        return 2;
    }
    return 0;
}
