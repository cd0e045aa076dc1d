NAME="compare"
SUMMARY="x"
EXAMPLES=""
"""d"""
def add_arguments(p): pass
def run(a): return ""
