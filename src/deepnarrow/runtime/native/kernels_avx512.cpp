#include "kernels_body.h"

namespace dn {
static const Kernels TABLE = table("avx512");
const Kernels* kernels_avx512() { return &TABLE; }
}  // namespace dn
