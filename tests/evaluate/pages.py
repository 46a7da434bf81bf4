"""Reading pages as a browser would, strictly."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects data by table, links, text and ids."""

    void = ("meta", "img", "br", "source", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.values, self.targets, self.text, self.images, self.ids = [], {}, [], [], [], []
        self.table = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.targets += [attrs[key] for key in ("src", "href", "srcset", "action", "data") if key in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "table":
            self.table = attrs.get("id")
        if tag == "img":
            self.images.append(attrs)
        if tag == "data":
            self.values.setdefault(self.table, []).append(float(attrs["value"]))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag
        if tag == "table":
            self.table = None

    def handle_data(self, data):
        if data.strip() and not {"style", "title"} & set(self.open):
            self.text.append(data.strip())


def assert_self_contained(text):
    """Nothing is loaded, nothing runs, and every inner link leads somewhere."""
    page = Page(text)
    inner = [target[1:] for target in page.targets if target.startswith("#")]
    assert set(inner) <= set(page.ids) and len(set(page.ids)) == len(page.ids)
    outer = [target for target in page.targets if not target.startswith("#")]
    assert all(target.startswith("data:image/") for target in outer)
    assert "http" not in re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert "<script" not in text and "url(" not in text and "@import" not in text
    assert all(image["alt"] for image in page.images)
    return page
