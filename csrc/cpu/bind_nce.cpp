#include "binding.h"

PyMethodDef nce_methods[] = {{nullptr, nullptr, 0, nullptr}};
