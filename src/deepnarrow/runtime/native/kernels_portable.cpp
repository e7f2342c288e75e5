#include "kernels_body.h"

namespace dn {
static const Kernels TABLE = table("portable");
const Kernels* kernels_portable() { return &TABLE; }
}  // namespace dn
