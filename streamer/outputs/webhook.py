"""Webhooks: each event as a signed HTTP POST, to an address that is looked at before it is reached."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import ssl
import time
from collections.abc import Sequence
from functools import cache

import httpx

from capture import SourceError
from capture.network.policy import looked_up, public_addresses, resolve
from capture.redaction import redact
from streamer.output_config import WebhookConfig
from streamer.outputs.delivery import Delivery, DeliveryError
from streamer.outputs.outbox import Entry

SIGNATURE, TIMESTAMP = "X-Streamer-Signature", "X-Streamer-Timestamp"
ANSWER_BYTES = 65_536
"""Of an answer's body that are read, so that the connection can be used again; one with more is closed."""
logging.getLogger("httpx").setLevel(logging.WARNING)


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What proves that a body was sent by who knows the secret, at that time: `sha256=` and the HMAC-SHA-256 in hexadecimal."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Webhook:
    """Posts events to a URL. Follows no redirect, uses no proxy, and connects to nothing but the address that it has looked at."""

    kind = "webhook"

    def __init__(self, config: WebhookConfig) -> None:
        self._config, self._url = config, httpx.URL(config.url)
        # Of many services the path is the secret: whoever knows it may post there.
        path = "/…" if self._url.raw_path.strip(b"/") else ""
        self.address = f"{self._url.scheme}://{self._url.netloc.decode('ascii')}{path}"

    async def run(self, delivery: Delivery) -> None:
        """See `Target`."""
        async with httpx.AsyncClient(
            verify=await asyncio.to_thread(_trusted),
            trust_env=False,
            follow_redirects=False,
            timeout=self._config.timeout,
            limits=httpx.Limits(max_connections=1),
        ) as client:

            async def send(entries: Sequence[Entry]) -> None:
                for entry in entries:
                    await self._post(client, entry.body)

            await delivery.drain(send)

    async def _post(self, client: httpx.AsyncClient, body: bytes) -> None:
        """Raises DeliveryError."""
        try:
            async with asyncio.timeout(self._config.timeout):
                await self._answered(client, body)
        except TimeoutError:
            raise DeliveryError(f"{self.address} has not answered within {self._config.timeout:g} s") from None
        except (httpx.HTTPError, OSError) as error:
            raise DeliveryError(
                f"{self.address} can't be reached: {redact(str(error)) or type(error).__name__}"
            ) from None
        except SourceError as error:
            raise DeliveryError(f"{self.address}: {error}", slow=True) from None

    async def _answered(self, client: httpx.AsyncClient, body: bytes) -> None:
        host = self._url.host
        addresses = await looked_up(public_addresses if self._config.public_only else resolve, host)
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "streamer",
            "Host": self._url.netloc.decode("ascii"),
            TIMESTAMP: timestamp,
        }
        if self._config.secret is not None:
            headers[SIGNATURE] = signature(self._config.secret, timestamp, body)
        answer = await self._sent(client, addresses, body, headers)
        try:
            if not answer.is_success:
                raise DeliveryError(_refused(self.address, answer.status_code))
            read = 0
            async for chunk in answer.aiter_raw():
                read += len(chunk)
                if read > ANSWER_BYTES:
                    break
        finally:
            await answer.aclose()

    async def _sent(
        self, client: httpx.AsyncClient, addresses: Sequence[str], body: bytes, headers: dict[str, str]
    ) -> httpx.Response:
        """The answer's head, from the first of the host's addresses that takes a connection."""
        for address in addresses:
            request = client.build_request(
                "POST",
                self._url.copy_with(host=address),
                content=body,
                headers=headers,
                extensions={"sni_hostname": self._url.host},
            )
            try:
                return await client.send(request, stream=True)
            except httpx.ConnectError as error:
                failure = error
        raise failure


def _refused(address: str, status: int) -> str:
    if 300 <= status < 400:
        return f"{address} answers {status} and points elsewhere, which is not followed: set url to where it has moved"
    return f"{address} answers {status}, not 2xx"


@cache
def _trusted() -> ssl.SSLContext:
    """Made once: reading this machine's authorities takes a while."""
    return ssl.create_default_context()
