#include "kernels_body.h"

namespace dn {
static const Kernels TABLE = table("avx2vnni");
const Kernels* kernels_avx2vnni() { return &TABLE; }
}  // namespace dn
