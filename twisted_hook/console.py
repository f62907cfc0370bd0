"""Everything that answers at the dashboard's own port, and who may ask: the API, the metrics, the events, the pages.

Whoever comes over TCP shows the API's token, or the cookie of a session; what changes something must not come from
somebody else's page. It holds no rules of deploying, and renders no page but through the dashboard.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from ipaddress import ip_address
from typing import Protocol, cast
from urllib.parse import parse_qsl

from msgspec.json import encode
from twisted.web.http import SEE_OTHER
from twisted.web.resource import IResource, Resource

from twisted_hook.api import Api
from twisted_hook.hooks import media_type
from twisted_hook.model import Refused
from twisted_hook.peers import connected_from
from twisted_hook.rates import Rate
from twisted_hook.sessions import LIFETIME, Session, Sessions, is_foreign, is_over_tls, is_same, name_in
from twisted_hook.site import GuardedRequest, Limits
from twisted_hook.streams import MOST

LIMITS = Limits(
    max_body=65_536,
    connections_per_peer=MOST + 64,
    refusals=Rate(burst=50, per_second=1),
)
"""What the dashboard's door bears; readers of events may all sit behind one proxy."""
SAFE = frozenset({b"GET", b"HEAD"})
FORM = b"application/x-www-form-urlencoded"
MOST_FIELDS = 50
API, METRICS, STATIC, LOGIN, LOGOUT = b"/api/", b"/metrics", b"/static/", b"/login", b"/logout"
ALLOWED = {LOGIN: SAFE | {b"POST"}, LOGOUT: frozenset({b"POST"})}
HTML = b"text/html; charset=utf-8"
AGAIN = b'<!doctype html><html lang="en"><meta http-equiv="refresh" content="0"><title>hookdeploy</title>'
HEADERS = {
    b"Content-Security-Policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    b"X-Content-Type-Options": b"nosniff",
    b"Referrer-Policy": b"no-referrer",
    b"Cache-Control": b"no-store",
    b"Cross-Origin-Opener-Policy": b"same-origin",
    b"Cross-Origin-Resource-Policy": b"same-origin",
}
"""With every answer of the console."""


class Pages(Protocol):
    """What the console asks of the dashboard."""

    def screen(self, request: GuardedRequest) -> None:
        """Refuse, by ``Refused`` 404 or 405, what is no page. ``/static/`` is answered to anybody, so is ``/login``."""

    def resource(self) -> IResource:
        """What answers; ``request.visitor`` is the session, or None for who has shown the token itself."""

    def login(self, request: GuardedRequest, *, wrong: bool) -> bytes:
        """The page that asks for the token: a form that posts ``token`` to ``/login``; ``wrong``, if it was."""


def form_of(request: GuardedRequest) -> Mapping[str, str]:
    """The fields of a form that was posted; of two with one name, the first. Raises ``Refused``."""
    if media_type(request.header) != FORM:
        return {}
    try:
        fields = parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise Refused(400, "a form of too many fields") from None
    return dict(reversed(fields))


def explained(refused: Refused) -> bytes:
    """What a refusal says here: why. Whoever comes to this door is to know."""
    return encode({"error": refused.reason})


class Console:
    """The guard of the dashboard's port, and its signposts."""

    def __init__(
        self,
        api: Api,
        token: str,
        *,
        now: Callable[[], float],
        hosts: Callable[[], Collection[str]],
    ) -> None:
        """``hosts`` are the names under which it may be reached, beside addresses and ``localhost``."""
        self._api = api.app.resource()
        self._now = now
        self._hosts = hosts
        self._pages: Pages | None = None
        self._page: IResource | None = None
        self.admit(token)

    def admit(self, token: str) -> None:
        """Believe this token from now on; with another one all sessions end."""
        self._token = token
        self._sessions = Sessions(token)

    @property
    def shows_pages(self) -> bool:
        return self._pages is not None

    def show(self, pages: Pages) -> None:
        """Answer with these too."""
        self._pages, self._page = pages, pages.resource()

    def resource(self) -> IResource:
        return _Leaf(self._render)

    # --- before a body is read

    def screen(self, request: GuardedRequest) -> None:
        """Refuse who may not ask here, or asks for what is not there."""
        for name, value in HEADERS.items():
            request.setHeader(name, value)
        self._judge_origin(request)
        self._find(request)
        if not _is_public(request.path):
            self._recognise(request)

    def _judge_origin(self, request: GuardedRequest) -> None:
        host = _only(request, b"host")
        if not self._is_ours(host):
            raise Refused(403, "not a name of this dashboard: name it in dashboard.hosts, or take the address")
        if request.method in SAFE:
            return
        if is_foreign(host=host or "", origin=_only(request, b"origin"), fetch_site=_only(request, b"sec-fetch-site")):
            raise Refused(403, "asked for by a page from elsewhere")

    def _is_ours(self, host: str | None) -> bool:
        """Whether the name is one of ours: a page that lets its own name point here shall not pass for one (T40)."""
        name = name_in(host or "")
        try:
            ip_address(name)
        except ValueError:
            return name == "localhost" or name.endswith(".localhost") or name in self._hosts()
        return True

    def _find(self, request: GuardedRequest) -> None:
        # Klein takes ``//host/`` for a path of ours, and a browser takes it for another host.
        if not request.path.startswith(b"/") or b"//" in request.path:
            raise Refused(404, "no such path")
        if _is_data(request.path):
            Api.screen(request)
        elif request.path in ALLOWED:
            _allow(request, ALLOWED[request.path])
        elif self._pages is None:
            raise Refused(404, "no such path")
        else:
            self._pages.screen(request)

    def _recognise(self, request: GuardedRequest) -> None:
        """Know who asks; a page for people is answered to a stranger too, with the question for the token."""
        given = _only(request, b"authorization")
        if given is not None:
            if not is_same(_bearer(given), self._token):
                self._refuse_stranger(request, "a wrong token")
        else:
            request.visitor = self._visitor(request)
            if request.visitor is None and not self._is_for_people(request):
                self._refuse_stranger(request, "no token and no session")
            if request.visitor is None:
                return
        request.site.known.add(request.share)

    @staticmethod
    def _refuse_stranger(request: GuardedRequest, why: str) -> None:
        request.setHeader(b"WWW-Authenticate", b'Bearer realm="hookdeploy"')
        raise Refused(401, why)

    def _visitor(self, request: GuardedRequest) -> Session | None:
        cookie = request.getCookie(self._cookie_name(request)) or b""
        session = self._sessions.read(cookie.decode("latin-1"), self._now())
        if session is not None and session.is_to_be_renewed(self._now()):
            self._set_cookie(request, self._sessions.renewed(session, self._now()))
        return session

    def _is_for_people(self, request: GuardedRequest) -> bool:
        is_page = not _is_data(request.path) and request.path not in ALLOWED
        return is_page and request.method in SAFE and b"text/html" in b",".join(request.header(b"accept"))

    # --- answering

    def _render(self, request: GuardedRequest) -> bytes | int:
        try:
            return self._admit(request)
        except Refused as refused:
            return request.refuse(refused)

    def _admit(self, request: GuardedRequest) -> bytes | int:
        if request.path == LOGIN:
            return self._log_in(request)
        if request.visitor is None and not _is_public(request.path) and not request.header(b"authorization"):
            return self._ask_who(request)
        if request.visitor is not None and request.method not in SAFE:
            self._check_csrf(request, request.visitor)
        if request.path == LOGOUT:
            self._set_cookie(request, "", lasting=0)
            return _go_to(request, LOGIN)
        return self._render_what_is_asked(request)

    def _render_what_is_asked(self, request: GuardedRequest) -> bytes | int:
        resource = self._api if _is_data(request.path) or self._page is None else self._page
        return cast("bytes | int", resource.render(request))

    def _check_csrf(self, request: GuardedRequest, session: Session) -> None:
        given = _only(request, b"x-csrf-token") or form_of(request).get("csrf", "")
        if not is_same(given, session.csrf):
            raise Refused(403, "without the token of this session (X-CSRF-Token, or the field csrf)")

    def _log_in(self, request: GuardedRequest) -> bytes:
        query = [value.decode("latin-1") for value in request.args.get(b"token", [])]
        given = query[0] if query else form_of(request).get("token")
        if given is None:
            return self._login_page(request, wrong=False)
        if not is_same(given.strip(), self._token):
            request.refuse(Refused(401, "a wrong token"))
            return self._login_page(request, wrong=True)
        request.site.known.add(request.share)
        self._set_cookie(request, self._sessions.begin(secrets.token_bytes(16), self._now()))
        return _go_to(request, b"/")

    def _ask_who(self, request: GuardedRequest) -> bytes:
        request.refuse(Refused(401, "no token and no session"))
        if _only(request, b"sec-fetch-site") == "cross-site" and _only(request, b"sec-fetch-mode") == "navigate":
            # Who follows a link from elsewhere comes without the cookie; asked for by our own page, it is there.
            return request.answer(AGAIN, HTML)
        return self._login_page(request, wrong=False)

    def _login_page(self, request: GuardedRequest, *, wrong: bool) -> bytes:
        page = b"hookdeploy: no pages here" if self._pages is None else self._pages.login(request, wrong=wrong)
        return request.answer(page, HTML)

    # --- cookies

    def _cookie_name(self, request: GuardedRequest) -> bytes:
        return (b"__Host-" if _is_secure(request) else b"") + self._sessions.name.encode()

    def _set_cookie(self, request: GuardedRequest, value: str, *, lasting: int = LIFETIME) -> None:
        name, secure = self._cookie_name(request), b"; Secure" if _is_secure(request) else b""
        said = b"%b=%b; Max-Age=%d; Path=/; HttpOnly; SameSite=Strict%b"
        request.setHeader(b"Set-Cookie", said % (name, value.encode(), lasting, secure))


class _Leaf(Resource):
    """Whatever the path, this answers."""

    isLeaf = True  # noqa: N815 (Twisted's name)

    def __init__(self, answer: Callable[[GuardedRequest], bytes | int]) -> None:
        super().__init__()
        self._answer = answer

    def render(self, request: GuardedRequest) -> bytes | int:
        answered = self._answer(request)
        # Twisted leaves the body of a HEAD away itself, with a line in the log for each.
        return b"" if request.method == b"HEAD" and isinstance(answered, bytes) else answered


def _is_data(path: bytes) -> bool:
    """What the API answers, not the pages."""
    return path.startswith(API) or path == METRICS


def _is_public(path: bytes) -> bool:
    """What a stranger may have: the way in, and what the pages are painted with."""
    return path == LOGIN or path.startswith(STATIC)


def _is_secure(request: GuardedRequest) -> bool:
    """Whether the browser speaks TLS, to us or to a proxy: by the word of one that counts, or by its own.

    A browser refuses a cookie for TLS alone that comes without TLS, and whoever logs in would be asked again for ever.
    """
    connected = connected_from(getattr(request.client, "host", None))
    told = request.site.limits.trusted.covers(connected) and _only(request, b"x-forwarded-proto") == "https"
    host, fetch_site = _only(request, b"host") or "", _only(request, b"sec-fetch-site")
    return bool(request.isSecure()) or told or is_over_tls(host=host, fetch_site=fetch_site)


def _only(request: GuardedRequest, name: bytes) -> str | None:
    """The one value of a header. Of several none is believed, but they are not taken for none."""
    values = request.header(name)
    return b", ".join(values).decode("latin-1") if values else None


def _bearer(authorization: str) -> str:
    """The token in it; empty where there is none. The scheme may be in any case (RFC 9110, 11.1)."""
    scheme, _, token = authorization.partition(" ")
    return token.lstrip(" ") if scheme.lower() == "bearer" else ""


def _allow(request: GuardedRequest, methods: Collection[bytes]) -> None:
    if request.method not in methods:
        request.setHeader(b"Allow", b", ".join(sorted(methods)))
        raise Refused(405, "a method that the path does not know")


def _go_to(request: GuardedRequest, path: bytes) -> bytes:
    request.setResponseCode(SEE_OTHER)
    request.setHeader(b"Location", path)
    return request.answer(b"", HTML)
