"""The page in a real browser, against a real detector: what it shows, how it is used, what it must not do."""

import base64
import re

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright (dev) drives the browser")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python (dev) has axe-core")

from blades_dist.detect.detector import load_detector  # noqa: E402
from tests.serving import browser as helper  # noqa: E402

pytestmark = pytest.mark.skipif(helper.chromium() is None, reason="no Chromium here; BLADES_CHROMIUM names one")
playwright.expect.set_options(timeout=60_000)  # as the tabs' own
WORDS = {"photographic": "Looks photographic", "ai_generated": "Looks AI-generated", "unsure": "Unsure"}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "oc"
    helper.write_detector(folder)
    return load_detector(folder), folder


@pytest.fixture(scope="module")
def pictures(detector):
    return helper.find_pictures(detector[0])


@pytest.fixture(scope="module")
def url(detector):
    with helper.service(detector[1], detector[0]) as base:
        yield base


@pytest.fixture(scope="module")
def chrome():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=helper.chromium(),
            args=["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--disable-gpu"],
        )
        yield started
        started.close()


@pytest.fixture
def tab(chrome, url):
    """Opens the page; after the test: no error in the console, nothing against the policy, nothing sent elsewhere."""
    watches, contexts = [], []

    def open_tab(width=1100, height=900, path="/", **options):
        context = chrome.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        context.set_default_timeout(60_000)
        page, watch = context.new_page(), helper.Watch(url)
        watches.append(watch)
        page.on("console", watch.console)
        page.on("pageerror", lambda error: watch.errors.append(str(error)))
        context.on("request", watch.request)
        page.goto(url + path)
        page.watch = watch
        return page

    yield open_tab
    for context in contexts:
        context.close()
    for watch in watches:
        assert not watch.errors and not watch.strangers


def _file(name, data, kind="image/jpeg"):
    return {"name": name, "mimeType": kind, "buffer": data}


def _event(page, kind, files, text=""):
    """Files as a person drops or pastes them: (name, bytes) each."""
    page.evaluate(
        """([kind, files, text]) => {
            const carried = new DataTransfer();
            for (const [name, data] of files) {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                carried.items.add(new File([bytes], name, {type: "image/jpeg"}));
            }
            if (text) carried.setData("text/plain", text);
            const options = {bubbles: true, cancelable: true, dataTransfer: carried, clipboardData: carried};
            const Kind = kind === "paste" ? ClipboardEvent : DragEvent;
            document.getElementById("drop").dispatchEvent(new Kind(kind, options));
        }""",
        [kind, [[name, base64.b64encode(data).decode()] for name, data in files], text],
    )


def _card(page, name, state="done"):
    card = page.locator(f".item[data-state={state}]", has=page.get_by_role("heading", name=name, exact=True))
    card.wait_for()
    return card


def _add(page, *named):
    page.set_input_files("#files", [_file(name, data) for name, data in named])
    return [_card(page, name) for name, _ in named]


def test_dropped_pictures_get_the_detectors_verdicts(tab, detector, pictures):
    page = tab()
    given = {f"{name}.jpg": getattr(pictures, name) for name in WORDS}
    _event(page, "drop", list(given.items()))
    for name, data in given.items():
        (face,) = helper.expected(detector[0], data).faces
        card = _card(page, name)
        assert card.locator("button.face .chip").all_inner_texts() == [WORDS[face.verdict]]
        panel = card.locator(".panel").inner_text()
        assert f"p-value {face.p_value:.2g}" in panel
        as_unusual = round(face.p_value * 60) - 1
        if 0 < as_unusual < 59:
            share = f"About {100 * face.p_value:.0f} of 100 real photographs"
            assert share in panel and share in card.locator(".histogram").get_attribute("aria-label")
        assert all(f"{reason[1:]}." in panel for reason in face.unsure_because)
        rows = [row.inner_text() for row in card.locator("tr", has_text="Saved as JPEG, quality 75").all()]
        assert len(rows) == 1 and f"{face.re_encoded['jpeg75']:.2g}" in rows[0]
        for region, value in face.read_outs["face_fine"].items():
            assert re.search(rf"{region.capitalize()}\s+{100 * value:.0f}\s%", panel)
    assert re.search("(dis|contra)", _card(page, "photographic.jpg").locator(".panel").inner_text())
    assert "claims no camera settings" in _card(page, "ai_generated.jpg").locator(".panel").inner_text()
    claimed = helper.expected(detector[0], pictures.photographic).faces[0].exif_consistency.tags
    table = _card(page, "photographic.jpg").locator("table", has_text="The file claims").text_content()
    assert all(claim.claimed in table for claim in claimed.values())
    assert not re.search("null|undefined|NaN|object Object", page.locator("body").inner_text())
    assert "photographic.jpg: 1 face: looks photographic" in page.locator("#announcer").inner_text()


def test_two_faces_of_a_turned_picture(tab, detector, pictures):
    page, report = tab(), helper.expected(detector[0], pictures.pair)
    (card,) = _add(page, ("pair.jpg", pictures.pair))
    assert report.width > report.height and len(report.faces) == 2
    frame = card.locator(".frame").bounding_box()
    scale = frame["width"] / report.width
    assert frame["height"] == pytest.approx(report.height * scale, abs=1)
    for face in report.faces:
        spot = card.get_by_role("button", name=f"Face {face.face}: {WORDS[face.verdict]}")
        box = spot.bounding_box()
        place = [box["x"] - frame["x"], box["y"] - frame["y"], box["width"], box["height"]]
        assert place == pytest.approx([value * scale for value in face.box], abs=1.5)
    # Selecting goes both ways.
    entries, spots = card.locator("button.face"), card.locator(".spot")
    spots.nth(1).click()
    assert [entry.get_attribute("aria-expanded") for entry in entries.all()] == ["false", "true"]
    entries.nth(0).click()
    assert [spot.get_attribute("aria-pressed") for spot in spots.all()] == ["true", "false"]
    assert card.locator(".outlines .selected").count() == 1 and card.locator(".panel:visible").count() == 1
    kinds = {
        verdict: card.locator(f".over.{verdict}").first.evaluate("line => getComputedStyle(line).strokeDasharray")
        for verdict in {face.verdict for face in report.faces}
    }
    assert len(set(kinds.values())) == len(kinds)  # told apart without colour


def test_settings_are_sent_and_rate_is_told(tab, detector, pictures):
    page = tab()
    page.wait_for_selector("#fpr option[value='0.05']", state="attached")
    usable = [point.fpr for point in detector[0].info.operating_points if point.threshold is not None]
    options = page.locator("#fpr option").all()
    assert [float(option.get_attribute("value")) for option in options] == usable
    page.select_option("#fpr", "0.05")
    assert "at most about 5 of 100 real faces" in page.locator("#meaning").inner_text()
    page.check("#crop")
    (card,) = _add(page, ("crop.jpg", pictures.photographic))
    assert "fpr=0.05" in page.watch.posts[0] and "faces=crop" in page.watch.posts[0]
    (face,) = helper.expected(detector[0], pictures.photographic, 0.05, whole=True).faces
    assert card.locator(".chip").inner_text() == WORDS[face.verdict]
    assert "central square" in card.inner_text()
    page.uncheck("#crop")
    page.get_by_role("button", name="Judge all again").click()
    page.locator(".item[data-state=done]", has_text="Faces that were not found").wait_for()
    assert "faces=locate" in page.watch.posts[1]


def test_problems_are_told_beside_the_picture(tab, pictures):
    page = tab()
    page.watch.refusals_expected = True
    whole = pictures.photographic
    cases = {
        "broken.jpg": (whole[: len(whole) // 2], "ends too early"),
        "words.png": (b"no picture", "cannot be read as a picture"),
        "old.gif": (b"GIF89a" + bytes(50), "does not take pictures of this format"),
        "huge.jpg": (whole + bytes(helper.MAX_BYTES), "larger than this service takes|broke off"),
    }
    page.set_input_files("#files", [_file(name, data) for name, (data, _) in cases.items()])
    for name, (_, told) in cases.items():
        assert re.search(told, _card(page, name, "failed").locator(".notice").inner_text())
    log = page.locator("#announcer").inner_text()
    assert "broken.jpg: The picture ends too early." in log
    _event(page, "paste", [("", whole)])
    assert "1 face" in _card(page, "Pasted picture").locator(".status").inner_text()
    _event(page, "drop", [], "https://elsewhere.example/face.jpg")
    page.locator("#announcer", has_text="No picture file").wait_for()
    assert len(page.watch.posts) == len(cases) + 1


def test_overload_lost_connection_and_token(tab, url, pictures):
    """Answers that a service gives only in trouble are put in its place; the rest of the way is real."""
    page = tab()
    page.watch.refusals_expected = True
    busy = {"status": 503, "headers": {"Retry-After": "7"}, "json": {"title": "busy", "detail": "", "reason": "busy"}}
    page.route("**/v1/detect*", lambda route: route.fulfill(**busy))
    page.set_input_files("#files", [_file("a.jpg", pictures.photographic)])
    card = _card(page, "a.jpg", "failed")
    assert "too much to do right now. Try again in 7 seconds." in card.locator(".notice").inner_text()
    page.unroute("**/v1/detect*")
    page.context.set_offline(True)
    card.get_by_role("button", name="Judge again").click()
    page.get_by_text("cannot be reached").first.wait_for()
    page.context.set_offline(False)

    def guard(route):
        if route.request.headers.get("authorization") == "Bearer secret":
            return route.continue_()
        return route.fulfill(status=401, json={"title": "no token", "detail": "", "reason": "unauthorized"})

    page.route("**/v1/**", guard)
    assert page.locator("#token-form").is_hidden()
    _card(page, "a.jpg", "failed").get_by_role("button", name="Judge again").click()
    page.get_by_label("Access token").fill("wrong")
    page.keyboard.press("Enter")
    page.locator("#notice", has_text="does not accept this token").wait_for()
    page.get_by_label("Access token").fill("secret")
    page.get_by_role("button", name="Use token").click()
    _card(page, "a.jpg")
    stored = "[localStorage.length, sessionStorage.length, document.cookie.length, location.search]"
    assert page.evaluate(stored) == [0, 0, 0, ""]


def test_cancel_and_remove(tab, pictures):
    page = tab()
    page.route("**/v1/detect*", lambda route: None)  # never answered
    page.watch.refusals_expected = True
    page.set_input_files("#files", [_file(f"{i}.jpg", pictures.photographic) for i in range(4)])
    playwright.expect(page.locator(".item[data-state=sending]")).to_have_count(2)
    playwright.expect(page.locator(".item[data-state=waiting]")).to_have_count(2)
    _card(page, "0.jpg", "sending").get_by_role("button", name="Cancel").click()
    _card(page, "0.jpg", "cancelled")
    _card(page, "2.jpg", "sending")  # the next one has moved up
    page.get_by_role("button", name="Remove all").click()
    assert page.locator("#results").is_hidden() and page.evaluate("document.activeElement.id") == "choose"


def test_a_service_that_says_less(tab, url, pictures):
    """Without histogram and names of models (older services) the page shows what there is."""
    page = tab()

    def plain(route):
        body = route.fetch().json()
        for key in ("name", "default", "score_unit", "histogram"):
            del body["models"][0][key]
        route.fulfill(json=body)

    page.route("**/v1/models", plain)
    page.reload()
    (card,) = _add(page, ("a.jpg", pictures.ai_generated))
    assert card.locator(".histogram").count() == 0 and "real photographs look as unusual" in card.inner_text()


def test_by_keyboard_alone(tab, pictures):
    page, chosen = tab(), [_file("pair.jpg", pictures.pair), _file("one.jpg", pictures.photographic)]
    page.on("filechooser", lambda chooser: chooser.set_files(chosen))
    page.wait_for_selector("#fpr option[value='0.05']", state="attached")

    def tab_to(wanted):
        for _ in range(40):
            page.keyboard.press("Tab")
            focus = page.evaluate(
                """() => {
                    const at = document.activeElement, {outlineStyle: line, outlineWidth: width} = getComputedStyle(at);
                    const text = at === document.body ? "" : `${at.innerText} #${at.id}`;
                    return {text, line, width: parseFloat(width)};
                }"""
            )
            seen = focus["line"] != "none" and focus["width"] >= 2
            assert seen or not focus["text"], f"the focus cannot be seen on {focus['text']!r}"
            if wanted in focus["text"]:
                return
        raise AssertionError(f"{wanted!r} cannot be reached")

    tab_to("Choose pictures")
    page.keyboard.press("Enter")
    card, _ = _card(page, "pair.jpg"), _card(page, "one.jpg")
    tab_to("#fpr")
    page.keyboard.press("Home")
    assert float(page.locator("#fpr").input_value()) < 0.1
    tab_to("Face 2")
    assert card.locator("button.face").nth(1).get_attribute("aria-expanded") == "false"
    page.keyboard.press("Enter")
    assert card.locator(".spot").nth(1).get_attribute("aria-pressed") == "true"
    for _ in range(2):
        page.locator(".item").first.locator("h3").evaluate("heading => heading.focus()")
        tab_to("Remove")
        page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "choose"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_and_screenshots(tab, pictures, tmp_path, scheme):
    page = tab(color_scheme=scheme)
    page.watch.refusals_expected = True
    _add(page, ("pair.jpg", pictures.pair), ("unsure.jpg", pictures.unsure))
    page.set_input_files("#files", [_file("broken.jpg", pictures.pair[:5000])])
    _card(page, "broken.jpg", "failed")
    for details in page.locator("details > summary:visible").all():
        details.click()
    found = axe.Axe().run(page).response["violations"]
    told = [(item["id"], item["impact"], [node["html"][:150] for node in item["nodes"]]) for item in found]
    page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
    assert not [item for item in told if item[1] in ("serious", "critical")], told
    assert not told, told


def test_phone_width(tab, pictures, tmp_path):
    page = tab(width=320, height=640)
    page.watch.refusals_expected = True
    long = "a-name-of-a-file-that-does-not-break-anywhere-" * 3 + ".jpg"
    _add(page, (long, pictures.pair), ("unsure.jpg", pictures.unsure))
    for details in page.locator("details > summary:visible").all():
        details.click()
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    wide = "[...document.querySelectorAll('main *')].filter((part) => part.getBoundingClientRect().right > 320)"
    assert page.evaluate(f"{wide}.map((part) => part.outerHTML.slice(0, 100))") == []
    assert page.evaluate("document.documentElement.scrollWidth") == 320
