"""As whom we come to a broker of our site: with the certificate of an identity (decides)."""

from __future__ import annotations

import msgspec

from edge_runtime.ports import Address
from edge_runtime.trust.identity import Identity


class Dress:
    """Gives an address of the site's broker what a member needs to get in, and to know the broker for one of the site's: with
    what the identity says at that moment. A `mqtts://` address is left as it is: it is somebody else's broker."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def __call__(self, address: Address) -> Address:
        if address.tls and not address.site_ca:
            return address
        who = self.identity
        return msgspec.structs.replace(
            address, tls=True, site_ca=True, username="", password="", crl=who.roster.crl,
            ca_file=str(who.ca_file), cert_file=str(who.cert_file), key_file=str(who.key_file),
        )  # fmt: skip
