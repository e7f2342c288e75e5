#include "kernels_body.h"

namespace dn {
static const Kernels TABLE = table("avx2");
const Kernels* kernels_avx2() { return &TABLE; }
}  // namespace dn
