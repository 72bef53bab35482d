"""What every part of the project agrees on: findings, reasons, tables, contracts.

* `schemas.findings`: the 15 ChestX-ray14 classes in network output order.
* `schemas.contract`: how bytes become the network's input.
* `schemas.rejects`: why an image could not be scored.
* `schemas.quality`: why the scores of an image may not be believed.
* `schemas.tables`: the Arrow schemas of everything that is published.
* `schemas.errors`: the error that the command line reports as bad input.

Nothing here imports TensorFlow, Beam or another package of this project, and
`schemas.tables` alone imports pyarrow.
"""
