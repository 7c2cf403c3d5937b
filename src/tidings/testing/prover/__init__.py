"""The prover: runs a service's handlers through a crash at every point, and sees that nothing is lost or doubled.

::

    pytest_plugins = ["tidings.testing.plugin"]

    async def test_reserving_survives_crashes(prover: Prover) -> None:
        await prover.prove(stock, [OrderPlaced(...)], setup="CREATE TABLE …", state="SELECT sku, taken FROM stock")
"""

from tidings.testing.prover.prover import Differs, Proof, Prover

__all__ = ["Differs", "Proof", "Prover"]
