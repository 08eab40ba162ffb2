/* What a disk holds when the power fails: only what was synced.
 *
 * Preloaded into the hub's runner. On each fsync or fdatasync of a file it copies what
 * the file holds, and on that of a folder it lists the folder's names, as the next
 * number of a sequence in $FEDCT_FAULTS_SYNCS:
 *
 *     000017.file   first line "device-inode-birth path", then the content
 *     000018.dir    first line path, then "device-inode-birth name" for each entry;
 *                   a folder's name ends in a slash
 *
 * tests/faults/powerloss.py builds the folder from that as it was after any of them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_int sequence;

static void identity(int folder, const char *path, int flags, char *out, size_t size) {
  struct statx s;
  out[0] = 0;
  if (statx(folder, path, flags, STATX_INO | STATX_BTIME, &s) == 0)
    snprintf(out, size, "%u:%u-%llu-%lld.%u", s.stx_dev_major, s.stx_dev_minor,
             (unsigned long long)s.stx_ino, (long long)s.stx_btime.tv_sec,
             s.stx_btime.tv_nsec);
}

static void note(int fd) {
  const char *to = getenv("FEDCT_FAULTS_SYNCS");
  char link[64], path[PATH_MAX], name[PATH_MAX], done[PATH_MAX], id[128];
  char buffer[1 << 16];
  struct stat status;
  ssize_t size;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  size = readlink(link, path, sizeof path - 1);
  if (to == NULL || size < 0 || fstat(fd, &status) != 0)
    return;
  path[size] = 0;
  int folder = S_ISDIR(status.st_mode);
  int number = atomic_fetch_add(&sequence, 1);
  snprintf(name, sizeof name, "%s/%06d.tmp", to, number);
  snprintf(done, sizeof done, "%s/%06d.%s", to, number, folder ? "dir" : "file");
  FILE *out = fopen(name, "w");
  if (out == NULL)
    return;
  identity(fd, "", AT_EMPTY_PATH, id, sizeof id);
  if (folder) {
    fprintf(out, "%s\n", path);
    DIR *entries = opendir(path);
    for (struct dirent *e; entries && (e = readdir(entries));) {
      if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
        continue;
      identity(dirfd(entries), e->d_name, AT_SYMLINK_NOFOLLOW, id, sizeof id);
      fprintf(out, "%s %s%s\n", id, e->d_name, e->d_type == DT_DIR ? "/" : "");
    }
    if (entries)
      closedir(entries);
  } else {
    fprintf(out, "%s %s\n", id, path);
    int in = open(link, O_RDONLY | O_CLOEXEC);
    while (in >= 0 && (size = read(in, buffer, sizeof buffer)) > 0)
      fwrite(buffer, 1, size, out);
    if (in >= 0)
      close(in);
  }
  fclose(out);
  rename(name, done);
}

static int sync_through(const char *name, int fd) {
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  int result = real(fd);
  if (result == 0)
    note(fd);
  return result;
}

int fsync(int fd) { return sync_through("fsync", fd); }
int fdatasync(int fd) { return sync_through("fdatasync", fd); }
