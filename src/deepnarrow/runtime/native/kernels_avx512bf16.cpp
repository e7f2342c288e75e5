#include "kernels_body.h"

namespace dn {
static const Kernels TABLE = table("avx512bf16");
const Kernels* kernels_avx512bf16() { return &TABLE; }
}  // namespace dn
