"""Compiles one grammar from stdin and prints what is wrong with it; a program of its own, so that it can be ended.

No limit of llguidance's holds where regular expressions meet (`allOf` above all): their product may take any time and memory.
"""

import json
import resource
import sys

from llguidance import LLMatcher, LLParserLimits

CPU_SECONDS = 1
MEMORY = 2 << 30

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    asked = json.load(sys.stdin)
    print(LLMatcher.validate_grammar(asked["grammar"], limits=LLParserLimits(**asked["limits"])))
