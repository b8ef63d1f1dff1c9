/* A tree of processes that does what it can to outlive whoever has started it.

   NAME grow SEED SIZE OPTIONS   be the root of a tree that is drawn from SEED, of SIZE processes at most.
                                 Writes "up\n" when the root has made its own part. OPTIONS, letters or "-":
                                   e  the root exits then
                                   q  nobody but the root keeps stdin, stdout and stderr
                                   s  nobody sheds limits
                                   b  nobody forks for ever
   NAME escape KIND              one certain way of escaping, see `escape`; the root writes "up\n" and stays
   NAME scan PREFIX              list all processes of the machine whose name begins so: PID STATE PARENT NAME

   A process is known by its name (`comm`), the file that was executed: also the dead that nobody has reaped.
   Nobody lives longer than LIFE_S, so that a failed test does no harm; but for those that are stopped. */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LIFE_S = 60, STORM_FORKS = 200, STORM_WIDTH = 12, PACE_US = 100 };

static uint64_t state;
static int *room; /* how many more processes there may be at all, and whether the root has said that it is up */
static const char *options, *self;
static time_t end;
static pid_t root;

static uint32_t draw(uint32_t below) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33) % below;
}

static int has(char option) { return strchr(options, option) != NULL; }

static void nap(long microseconds) {
  struct timespec time = {microseconds / 1000000, microseconds % 1000000 * 1000};
  nanosleep(&time, NULL);
}

static void stay(void) {
  while (time(NULL) < end) nap(200000);
  _exit(0);
}

static void *stay_in_thread(void *nothing) {
  stay();
  return nothing;
}

static void shed_limits(void) {
  for (int limit = 0; limit < RLIM_NLIMITS; limit++) {
    struct rlimit value;
    if (limit != RLIMIT_STACK && getrlimit(limit, &value) == 0) {
      value.rlim_cur = value.rlim_max;
      setrlimit(limit, &value);
    }
  }
}

static void close_stdio(void) {
  for (int fd = 0; fd < 3; fd++) close(fd);
}

static void turn_deaf(void) {
  for (int number = 1; number < NSIG; number++) signal(number, SIG_IGN);
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, NULL);
}

/* A process that is another one at every moment. */
static void run_away(int in_new_sessions) {
  for (int count = 0; count < STORM_FORKS && time(NULL) < end; count++) {
    pid_t child = fork();
    if (child > 0) _exit(0);
    if (child == 0 && in_new_sessions) setsid();
    if (draw(4) == 0) nap(PACE_US);
  }
  stay();
}

/* A few at a time, and a new one for each that goes. */
static void breed(void) {
  int living = 0;
  for (int count = 0; count < STORM_FORKS && time(NULL) < end;) {
    while (living < STORM_WIDTH && count++ < STORM_FORKS) {
      pid_t child = fork();
      if (child == 0) {
        if (count % 3 == 0) setsid();
        nap(1000 + count % 7 * 500);
        if (count % 5 == 0 && fork() == 0) {
          nap(3000);
          _exit(0);
        }
        _exit(0);
      }
      living += child > 0;
    }
    while (waitpid(-1, NULL, living == STORM_WIDTH ? 0 : WNOHANG) > 0) living--;
  }
  stay();
}

static void be_traced(void) {
  ptrace(PTRACE_TRACEME, 0, NULL, NULL);
  raise(SIGSTOP);
  stay();
}

/* From then on the root stops at every signal, and its end is told to its tracer first, who does not listen. */
static void trace_root(void) {
  while (!__atomic_load_n(room + 1, __ATOMIC_RELAXED)) nap(1000);
  ptrace(PTRACE_SEIZE, root, NULL, NULL);
}

static void lose_first_thread(void) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, stay_in_thread, NULL) == 0) pthread_exit(NULL);
}

static void grow(int depth);

static void become_new_program(int with_environment) {
  char seed[24], size[12];
  snprintf(seed, sizeof seed, "%u", draw(1u << 30));
  snprintf(size, sizeof size, "%d", 3);
  char inner[8];
  snprintf(inner, sizeof inner, "ib%s%s", has('q') ? "q" : "", has('s') ? "s" : "");
  char *arguments[] = {(char *)self, "grow", seed, size, inner, NULL};
  char *nothing[] = {NULL};
  extern char **environ;
  execve("/proc/self/exe", arguments, with_environment ? environ : nothing);
  execve(self, arguments, with_environment ? environ : nothing);
}

/* What a process does to itself, and whether it goes on. */
static void mutate(int depth) {
  if (has('q') || draw(3) == 0) close_stdio();
  if (draw(3) == 0) setsid();
  if (draw(4) == 0) setpgid(0, 0);
  if (draw(3) == 0) turn_deaf();
  if (draw(6) == 0) prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  if (!has('s') && draw(6) == 0) shed_limits();
  if (draw(6) == 0) clearenv();
  if (draw(8) == 0) become_new_program(draw(2));
  if (depth < 4) grow(depth + 1);
  switch (draw(10)) {
    case 0: raise(SIGSTOP); break;
    case 1: be_traced(); break;
    case 2: _exit(0);
    case 3: lose_first_thread(); break;
    case 4: if (!has('b')) run_away(draw(2)); break;
    case 5: if (!has('b')) breed(); break;
    case 6: if (!has('e')) trace_root(); break;
  }
  stay();
}

static void grow(int depth) {
  int children = 1 + (int)draw(3);
  for (int number = 0; number < children; number++) {
    uint64_t branch = state ^ ((uint64_t)draw(1u << 30) << 20);
    int twice = draw(3) == 0;
    if (__atomic_sub_fetch(room, 1, __ATOMIC_RELAXED) < 0) return;
    pid_t child = fork();
    if (child == 0) {
      state = branch;
      if (twice) {
        if (draw(2)) setsid();
        if (fork() != 0) _exit(0);
        if (draw(2)) setsid();
      }
      mutate(depth);
    }
    if (child > 0 && twice && draw(2)) waitpid(child, NULL, 0);
  }
}

static void forked(void (*child)(void)) {
  if (fork() == 0) {
    child();
    stay();
  }
}

static void as_daemon(void) {
  setsid();
  if (fork() != 0) _exit(0);
  close_stdio();
}
static void as_session(void) { setsid(); close_stdio(); }
static void as_group(void) { setpgid(0, 0); }
static void as_deaf(void) { setsid(); turn_deaf(); }
static void as_stopped(void) { setsid(); raise(SIGSTOP); }
static void as_traced(void) { setsid(); be_traced(); }
static void as_quiet(void) { close_stdio(); turn_deaf(); }
static void as_shedding(void) { shed_limits(); setsid(); if (fork() != 0) _exit(0); close_stdio(); }
static void as_threadless(void) { setsid(); lose_first_thread(); }
static void as_chain(void) { close_stdio(); run_away(1); }
static void as_bare(void) {
  setsid();
  char *arguments[] = {(char *)self, "escape", "stay", NULL}, *nothing[] = {NULL};
  execve(self, arguments, nothing);
}

static void escape(const char *kind) {
  struct { const char *name; void (*child)(void); } kinds[] = {
    {"setsid", as_session},  {"daemon", as_daemon},   {"setpgid", as_group},      {"deaf", as_deaf},
    {"stopped", as_stopped}, {"traced", as_traced},   {"quiet", as_quiet},        {"environment", as_bare},
    {"limits", as_shedding}, {"thread", as_threadless}, {"chain", as_chain},
  };
  for (size_t number = 0; number < sizeof kinds / sizeof *kinds; number++)
    if (strcmp(kind, kinds[number].name) == 0) forked(kinds[number].child);
  nap(30000);
}

static int scan(const char *prefix) {
  DIR *folder = opendir("/proc");
  struct dirent *entry;
  char path[300], text[1024];
  while (folder != NULL && (entry = readdir(folder)) != NULL) {
    if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
    snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
    int fd = open(path, O_RDONLY);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (length <= 0) continue;
    text[length] = 0;
    char *name = strchr(text, '('), *after = strrchr(text, ')');
    if (name == NULL || after == NULL || strncmp(name + 1, prefix, strlen(prefix)) != 0) continue;
    int threads = 0, parent = 0;
    sscanf(after + 3, "%d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %d", &parent, &threads);
    /* A process whose first thread has ended looks like a dead one, and is none. */
    char status = after[2] == 'Z' && threads > 1 ? 'S' : after[2];
    *after = 0;
    printf("%s %c %d %s\n", entry->d_name, status, parent, name + 1);
  }
  return 0;
}

int main(int count, char **arguments) {
  self = arguments[0];
  options = "-";
  end = time(NULL) + LIFE_S;
  root = getpid();
  const char *what = count > 2 ? arguments[1] : "";
  if (strcmp(what, "scan") == 0) return scan(arguments[2]);
  if (strcmp(what, "escape") == 0) {
    if (strcmp(arguments[2], "stay") == 0) stay();
    escape(arguments[2]);
    if (write(1, "up\n", 3) != 3) return 1;
    stay();
  }
  if (strcmp(what, "grow") != 0 || count < 5) return 2;
  state = strtoull(arguments[2], NULL, 10) * 2654435761u + 12345;
  for (int number = 0; number < 8; number++) draw(2);
  room = mmap(NULL, 2 * sizeof *room, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  *room = atoi(arguments[3]);
  options = arguments[4];
  if (has('i')) {
    room[1] = 1;
    if (draw(2)) grow(3);
    mutate(4);
  }
  grow(0);
  nap(draw(3) * draw(10000));
  if (write(1, "up\n", 3) != 3) return 1;
  __atomic_store_n(room + 1, 1, __ATOMIC_RELAXED);
  if (has('e')) return 0;
  stay();
}
