// All kernels in one numerics; built twice. VARIANT is `exact` or `official`.
#include "emulator.h"

#include <type_traits>

// Everything is within the variant's namespace, because both variants have functions of the same names.
namespace VARIANT {

static std::vector<emulator::Kernel>& kernels() {
  static std::vector<emulator::Kernel> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*entry)(const void*), size_t args_bytes) { kernels().push_back({name, entry, args_bytes}); }
};

#include "../common.cuh"
#include "sources.inc"

}  // namespace VARIANT

#define PASTE2(a, b) a##b
#define PASTE(a, b) PASTE2(a, b)

// Runs kernel `name`. Returns 0, 1 if there is no such kernel, or 2 if its arguments have another size.
extern "C" int PASTE(switchyard_emulate_, VARIANT)(const char* name, const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes,
                                                   const void* args, size_t args_bytes) {
  for (const emulator::Kernel& kernel : VARIANT::kernels()) {
    if (std::strcmp(kernel.name, name) != 0) continue;
    if (kernel.args_bytes != args_bytes) return 2;
    emulator::run(kernel.entry, args, Dim3{grid[0], grid[1], grid[2]}, Dim3{block[0], block[1], block[2]}, shared_bytes);
    return 0;
  }
  return 1;
}
