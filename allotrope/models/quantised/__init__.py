"""Checkpoints whose weights are quantised already: what their config says, whose the tensors are, the exact codes.

config.py     quantization_config → `Stored`, or one line that says what is not supported
modules.py    a folder's tensor names → the quantised modules and the plain rest; one module → `Codes`
gptq.py awq.py compressed.py     one layout each: `unpack` and its exact inverse `pack`
headers.py      what a module's headers must say, given its matrix: proven before a byte is read
wide.py         the checkpoint, seen as the wide tensors that its codes stand for
codes.py      `Codes`, what every layout is unpacked to
"""
