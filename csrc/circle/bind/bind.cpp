// Which backend a tensor's kernels come from.
#include "circle/bind/bind.h"

PYEXT_DEFINE_BACKEND_FOR(circle)
