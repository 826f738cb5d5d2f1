// A driver without a GPU: it takes modules and writes launches down, for tests of what calls it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE *record;

static void note(const char *text) {
  if (!record) record = fopen(getenv("STUB_RECORD"), "w");
  fprintf(record, "%s\n", text);
  fflush(record);
}

static int wanted(const char *call) {  // STUB_FAIL=call:status makes that call fail
  static const char *fail;
  static int asked;
  if (!asked) asked = 1, fail = getenv("STUB_FAIL");
  if (!fail) return 0;
  size_t length = strlen(call);
  if (strncmp(fail, call, length) || fail[length] != ':') return 0;
  return atoi(fail + length + 1);
}

int cuInit(unsigned flags) { return wanted("cuInit"); }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }

int cuGetErrorString(int status, const char **text) {
  *text = "as the stub says";
  return 0;
}

int cuDeviceGet(int *device, int number) { return *device = number, 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)0x3000, 0; }
int cuCtxPushCurrent_v2(void *context) { return context == (void *)0x3000 ? 0 : 201; }
int cuCtxPopCurrent_v2(void **context) { return *context = (void *)0x3000, 0; }

int cuModuleLoadData(void **module, const void *image) {
  note(memcmp(image, "\177ELF", 4) ? "module of something else" : "module");
  *module = (void *)0x1000;
  return wanted("cuModuleLoadData");
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  char text[256];
  snprintf(text, sizeof text, "function %s", name);
  note(text);
  *function = (void *)0x2000;
  return wanted("cuModuleGetFunction");
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
  char text[64];
  snprintf(text, sizeof text, "attribute %d = %d", attribute, value);
  note(text);
  return wanted("cuFuncSetAttribute");
}

int cuStreamCreate(void **stream, unsigned flags) {
  note(flags == 1 ? "stream of its own" : "stream that waits for the legacy one");
  *stream = (void *)0x88;
  return wanted("cuStreamCreate");
}
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuEventCreate(void **event, unsigned flags) {
  static long made = 0x90;
  *event = (void *)made++;
  return flags == 2 ? 0 : 1;  // without times
}
int cuEventDestroy_v2(void *event) { return 0; }

int cuEventRecord(void *event, void *stream) {
  char text[64];
  snprintf(text, sizeof text, "record %p on %p", event, stream);
  note(text);
  return wanted("cuEventRecord");
}

int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
  char text[64];
  snprintf(text, sizeof text, "wait on %p for %p", stream, event);
  note(text);
  return wanted("cuStreamWaitEvent");
}

// STUB_TYPES has a letter for each parameter: p a pointer, i 32 bits, l 64 bits.
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **params, void **extra) {
  static const char *types;
  static int asked;
  if (!asked) asked = 1, types = getenv("STUB_TYPES");
  if (!types) return wanted("cuLaunchKernel");
  char text[1024];
  int at = snprintf(text, sizeof text, "launch %p grid %u %u %u block %u %u %u shared %u stream %p",
                    function, gx, gy, gz, bx, by, bz, shared, stream);
  for (int i = 0; types[i]; ++i) {
    if (types[i] == 'p') at += snprintf(text + at, sizeof text - at, " %p", *(void **)params[i]);
    if (types[i] == 'i') at += snprintf(text + at, sizeof text - at, " %d", *(int *)params[i]);
    if (types[i] == 'l') at += snprintf(text + at, sizeof text - at, " %lld", *(long long *)params[i]);
  }
  note(text);
  return wanted("cuLaunchKernel");
}

// The head of CUlaunchConfig, and its one attribute.
struct config {
  unsigned grid[3], block[3], shared;
  void *stream;
  struct {
    int id, pad, value[16];
  } *attributes;
  unsigned count;
};
int cuLaunchKernelEx(const struct config *c, void *function, void **params, void **extra) {
  char text[64];
  snprintf(text, sizeof text, "attribute of launch %d = %d", c->attributes->id, c->attributes->value[0]);
  if (c->count == 1) note(text);
  int status = cuLaunchKernel(function, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1],
                              c->block[2], c->shared, c->stream, params, extra);
  return status ? status : wanted("cuLaunchKernelEx");
}

int cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags,
                        int *status) {
  char name[256];
  snprintf(name, sizeof name, "%s_v2", symbol);
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) *function = dlsym(RTLD_DEFAULT, symbol);
  if (status) *status = *function ? 0 : 1;
  return *function ? 0 : 500;
}
int cuGetProcAddress(const char *symbol, void **function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}
