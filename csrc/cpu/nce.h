#pragma once

#include "parallel.h"

struct NceTable {};
