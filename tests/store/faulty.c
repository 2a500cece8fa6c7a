/* Calls of the file system that fail or wait, and a clock that is wrong, as the file named by FAULTY says. Its lines are
   "ERRNO PREFIX" (calls on such paths fail), "-MILLISECONDS PREFIX" (they wait first) and "clock SECONDS" (the time of day is
   so much later). Loaded by LD_PRELOAD. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int control(char *text, size_t space) {
  const char *path = getenv("FAULTY");
  int handle = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
  if (handle < 0) return 0;
  ssize_t size = syscall(SYS_read, handle, text, space - 1);
  syscall(SYS_close, handle);
  if (size <= 0) return 0;
  text[size] = 0;
  return 1;
}

static int faulty(int folder, const char *path) {
  char text[4096], full[PATH_MAX];
  if (!path || !control(text, sizeof text)) return 0;
  if (path[0] != '/') {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = folder == AT_FDCWD ? 0 : readlink(link, full, sizeof full - 1);
    if (length <= 0) return 0;
    snprintf(full + length, sizeof full - length, "/%s", path);
    path = full;
  }
  for (char *rest, *line = strtok_r(text, "\n", &rest); line; line = strtok_r(0, "\n", &rest)) {
    char *prefix = strchr(line, ' ');
    if (!prefix || strncmp(path, prefix + 1, strlen(prefix + 1))) continue;
    int number = atoi(line);
    if (number > 0) return errno = number;
    struct timespec pause = {-number / 1000, -number % 1000 * 1000000L};
    nanosleep(&pause, 0);
  }
  return 0;
}

static time_t late(void) {
  char text[4096], *line;
  return control(text, sizeof text) && (line = strstr(text, "clock ")) ? atol(line + 6) : 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list all; va_start(all, flags); mode = va_arg(all, mode_t); va_end(all); }

int open(const char *path, int flags, ...) { MODE return faulty(AT_FDCWD, path) ? -1 : REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return faulty(AT_FDCWD, path) ? -1 : REAL(open64)(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE return faulty(at, path) ? -1 : REAL(openat)(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE return faulty(at, path) ? -1 : REAL(openat64)(at, path, flags, mode); }
DIR *opendir(const char *path) { return faulty(AT_FDCWD, path) ? 0 : REAL(opendir)(path); }
int stat64(const char *path, struct stat64 *to) { return faulty(AT_FDCWD, path) ? -1 : REAL(stat64)(path, to); }
int lstat64(const char *path, struct stat64 *to) { return faulty(AT_FDCWD, path) ? -1 : REAL(lstat64)(path, to); }
int fstatat64(int at, const char *path, struct stat64 *to, int flags) { return faulty(at, path) ? -1 : REAL(fstatat64)(at, path, to, flags); }
int link(const char *from, const char *to) { return faulty(AT_FDCWD, from) || faulty(AT_FDCWD, to) ? -1 : REAL(link)(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return faulty(a, from) || faulty(b, to) ? -1 : REAL(linkat)(a, from, b, to, flags); }
int rename(const char *from, const char *to) { return faulty(AT_FDCWD, from) || faulty(AT_FDCWD, to) ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) { return faulty(a, from) || faulty(b, to) ? -1 : REAL(renameat)(a, from, b, to); }
int unlink(const char *path) { return faulty(AT_FDCWD, path) ? -1 : REAL(unlink)(path); }
int mkdir(const char *path, mode_t mode) { return faulty(AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode); }
int clock_gettime(clockid_t which, struct timespec *to) {
  int code = REAL(clock_gettime)(which, to);
  if (!code && which == CLOCK_REALTIME) to->tv_sec += late();
  return code;
}
int gettimeofday(struct timeval *restrict to, void *restrict zone) {
  int code = REAL(gettimeofday)(to, zone);
  if (!code) to->tv_sec += late();
  return code;
}
time_t time(time_t *to) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (to) *to = now.tv_sec;
  return now.tv_sec;
}
