import sys
from pathlib import Path

# `import oracles` and `import problems` from any test below, whatever the import mode.
for folder in (Path(__file__).parent, Path(__file__).parents[1]):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
