// For processors with AVX2 and FMA.
#include "expert_gradients.h"
#include "finish.h"
#include "generate.h"
#include "grad_generator.h"
#include "grad_weight.h"
#include "involution.h"
#include "mixing.h"
#include "norm_gradient.h"
