// For processors with AVX2 and FMA.
#include "involution.h"
#include "mixing.h"
