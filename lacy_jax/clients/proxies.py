"""Connections to a server through the proxy that the environment names, interpreted as by curl and requests."""

from __future__ import annotations

import base64
import ipaddress
import urllib.parse
import urllib.request
from typing import Any

import urllib3

from lacy_jax.errors import ConfigError


def open_pool(url: urllib3.util.Url, connections: int) -> urllib3.PoolManager:
    """Connections to the server of `url`.

    The variables are `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, in lower or upper case. A proxy may have
    user and password and the scheme http (the default), https, socks4, socks4a, socks5 or socks5h.

    Raises:
      ConfigError: the proxy's address is invalid, or it is a socks proxy and PySocks is not installed.
    """
    options: dict[str, Any] = {"maxsize": connections, "block": True, "retries": False}
    proxy = _proxy_of(url)
    if proxy is None:
        return urllib3.PoolManager(**options)
    if proxy.scheme in ("http", "https"):
        headers = {"proxy-authorization": basic_auth(proxy.auth)} if proxy.auth else None
        return urllib3.ProxyManager(shown(proxy), proxy_headers=headers, **options)
    try:
        from urllib3.contrib.socks import SOCKSProxyManager
    except ImportError:
        raise ConfigError(
            f"proxy {shown(proxy)}: socks needs PySocks: pip install 'urllib3[socks]'"
        ) from None
    user, _, password = (proxy.auth or "").partition(":")
    return SOCKSProxyManager(
        shown(proxy),
        username=urllib.parse.unquote(user) or None,
        password=urllib.parse.unquote(password) or None,
        **options,
    )


def basic_auth(auth: str) -> str:
    """The header for "USER:PASSWORD" as written in a URL."""
    return f"Basic {base64.b64encode(urllib.parse.unquote(auth).encode('utf-8', 'surrogatepass')).decode()}"


def shown(url: urllib3.util.Url) -> str:
    """The URL without user and password, for messages and names."""
    return url._replace(auth=None).url


def _proxy_of(url: urllib3.util.Url) -> urllib3.util.Url | None:
    proxies = urllib.request.getproxies()
    given = proxies.get(url.scheme or "") or proxies.get("all")
    if not given or _is_exempt(url, proxies.get("no", "")):
        return None
    try:
        proxy = urllib3.util.parse_url(given if "://" in given else f"http://{given}")
    except urllib3.exceptions.LocationParseError:
        proxy = urllib3.util.Url()
    if proxy.scheme not in ("http", "https", "socks4", "socks4a", "socks5", "socks5h") or not proxy.host:
        raise ConfigError(
            f"proxy of the environment for {shown(url)}: expected [http|https|socks5|socks5h://][USER:PASSWORD@]HOST:PORT"
        )
    return proxy


def _is_exempt(url: urllib3.util.Url, no_proxy: str) -> bool:
    """Whether `no_proxy` names the host: by the end of its name, with its port, by address, or by network (10.0.0.0/8)."""
    host = (url.host or "").strip("[]")
    if urllib.request.proxy_bypass(url.netloc or "") or urllib.request.proxy_bypass(host):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in no_proxy.split(","):
        try:
            if address in ipaddress.ip_network(entry.strip().strip("[]"), strict=False):
                return True
        except ValueError:  # A name.
            continue
    return False
