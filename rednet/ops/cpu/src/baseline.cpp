// For any processor of the architecture: SSE2 on x86-64, NEON on arm64.
#include "expert_gradients.h"
#include "finish.h"
#include "generate.h"
#include "grad_generator.h"
#include "grad_weight.h"
#include "involution.h"
#include "mixing.h"
#include "norm_gradient.h"
