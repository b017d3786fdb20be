/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The smallest guest of the benchmarks. As "true" it exits at once. As anything else, which is an init, it writes the
 * time of its first instruction to /stamp, in nanoseconds since 1970, and waits to be killed: CLOCK_REALTIME is the clock
 * that time namespaces do not shift. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    size_t length = argc > 0 ? strlen(argv[0]) : 0;
    if (length >= 4 && strcmp(argv[0] + length - 4, "true") == 0)
        return 0;
    char text[32];
    int size = snprintf(text, sizeof text, "%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    int file = open("/stamp", O_CREAT | O_WRONLY | O_TRUNC, 0644);
    if (file < 0 || write(file, text, size) != size)
        return 1;
    close(file);
    for (;;)
        pause();
}
