"""edge-runtime outbox"""

SUMMARY = ""


def arguments(p): ...
def run(a): ...
