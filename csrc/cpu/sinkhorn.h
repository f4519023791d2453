#pragma once

#include "parallel.h"

struct SinkhornTable {};
