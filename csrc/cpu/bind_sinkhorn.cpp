#include "binding.h"

PyMethodDef sinkhorn_methods[] = {{nullptr, nullptr, 0, nullptr}};
