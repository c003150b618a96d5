//! Random messages: good ones, odd ones, and both with a few bytes changed.

/// Random numbers of one seed (SplitMix64).
pub(in crate::tests) struct Dice(u64);

const METHODS: [&str; 8] = ["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "M-SEARCH", "get"];
const TARGETS: [&str; 9] = [
    "/",
    "/a?b=c",
    "/%20/%zz",
    "//x",
    "/a:b@c;d,e",
    "http://h/x",
    "http://h",
    "https://h:1?q",
    "http://[::1]:80/",
];
const ODD_TARGETS: [&str; 20] = [
    "*",
    "",
    "a",
    "/a#b",
    "/\"",
    "/<>",
    "/{}|\\^`",
    "/\u{e9}",
    "http://u@h/",
    "http://[::1/",
    "http://h:x/",
    "http://h:99999/",
    "http://a:b:c/",
    "http://%/",
    "http://]/",
    "http:///x",
    "http://:80/",
    "http://h/#",
    "ftp://h/",
    "/~\u{7f}",
];
const VERSIONS: [&str; 6] =
    ["HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.1 ", "HTTP/1.10", "HTTP/1"];
const ODD_FIELDS: [&str; 34] = [
    "Host: a",
    "Host: a b",
    "Host:",
    "host: [::1]",
    "Host: a:b:c",
    "Content-Length: 3",
    "Content-Length: 03",
    "Content-Length: 3, 3",
    "Content-Length: +3",
    "Content-Length: -3",
    "Content-Length: 0x3",
    "Content-Length: 99999999999999999999",
    "content-length: 3\t",
    "Content-Length : 3",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: Chunked ",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding:",
    "Transfer-Encoding : chunked",
    "Transfer_Encoding: chunked",
    "Connection: close",
    "Connection: X-Hop, Content-Length, Transfer-Encoding",
    "Connection: upgrade",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "TE: trailers",
    " folded",
    "\tfolded: x",
    "no colon",
    ": no name",
    "X-Free: \u{e9}",
    "X-Free:",
    "Trailer: X",
];
const LINE_ENDS: [&str; 5] = ["\n", "\r", "\r\r\n", "\n\r\n", " \r\n"];
/// What parsers stumble over.
const BYTES: &[u8] = b"\0\r\n\t :;,+-0f/#%\"\x0b\x7f\x80\xff";

impl Dice {
    pub(in crate::tests) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(in crate::tests) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("it is below a usize")
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    /// A request that may be odd or broken, and often bytes of a next one.
    pub(in crate::tests) fn message(&mut self) -> Vec<u8> {
        let odd = self.one_in(2);
        let mut message = self.build(odd);
        if self.one_in(3) {
            self.mutate(&mut message);
        }
        if self.one_in(2) {
            message.extend_from_slice(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        message
    }

    /// A request that everybody must accept.
    pub(in crate::tests) fn plain_message(&mut self) -> Vec<u8> {
        self.build(false)
    }

    fn build(&mut self, odd: bool) -> Vec<u8> {
        let mut lines = vec![self.request_line(odd), "Host: app.test:80".to_owned()];
        for _ in 0..self.below(4) {
            lines.push(format!("X-Free: {}", self.below(1 << 20)));
        }
        let body = self.body(&mut lines);
        for _ in 0..self.below(3) {
            if odd {
                let at = 1 + self.below(lines.len());
                lines.insert(at, self.pick(&ODD_FIELDS).to_owned());
            }
        }
        let mut message = Vec::new();
        lines.push(String::new());
        for line in lines {
            message.extend_from_slice(line.as_bytes());
            let end = if odd && self.one_in(40) { self.pick(&LINE_ENDS) } else { "\r\n" };
            message.extend_from_slice(end.as_bytes());
        }
        message.extend_from_slice(&body);
        message
    }

    fn request_line(&mut self, odd: bool) -> String {
        let method = if odd && self.one_in(20) { "CONNECT" } else { self.pick(&METHODS) };
        let odd_target = odd && self.one_in(4);
        let target = if odd_target { self.pick(&ODD_TARGETS) } else { self.pick(&TARGETS) };
        let version = match self.below(20) {
            0 if odd => self.pick(&VERSIONS),
            1 if odd => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        format!("{method} {target} {version}")
    }

    /// Adds the field that frames it.
    fn body(&mut self, lines: &mut Vec<String>) -> Vec<u8> {
        match self.below(4) {
            0 => {
                lines.push("Transfer-Encoding: chunked".to_owned());
                self.chunked()
            }
            1 => {
                let length = self.below(300);
                lines.push(format!("Content-Length: {length}"));
                self.bytes(length)
            }
            2 => {
                lines.push("Content-Length: 0".to_owned());
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }

    fn byte(&mut self) -> u8 {
        if self.one_in(2) { BYTES[self.below(BYTES.len())] } else { self.next().to_le_bytes()[0] }
    }

    fn chunked(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        for _ in 0..self.below(4) {
            let length = 1 + self.below(40);
            let size = match self.below(6) {
                0 => format!("{length:X} "),
                1 => format!("{length:04x}"),
                2 => format!("{length:x};x=\"y\""),
                3 => format!("{length:x} ; z"),
                _ => format!("{length:x}"),
            };
            body.extend_from_slice(size.as_bytes());
            body.extend_from_slice(b"\r\n");
            body.extend_from_slice(&self.bytes(length));
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n");
        if self.one_in(4) {
            body.extend_from_slice(b"X-Sum: 1\r\nEmpty:\r\n");
        }
        body.extend_from_slice(b"\r\n");
        body
    }

    /// A chunked body; every second one has been changed.
    pub(in crate::tests) fn chunked_mutated(&mut self) -> Vec<u8> {
        let mut body = self.chunked();
        if self.one_in(2) {
            self.mutate(&mut body);
        }
        body
    }

    /// Anything.
    pub(in crate::tests) fn noise(&mut self) -> Vec<u8> {
        let length = self.below(200);
        let mut noise = self.bytes(length);
        if self.one_in(2) {
            noise.splice(0..0, *b"GET / HTTP/1.1\r\nHost: a\r\n");
        }
        noise
    }

    pub(in crate::tests) fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len().max(1)).min(bytes.len());
            let end = (at + self.below(8)).min(bytes.len());
            match self.below(5) {
                0 => drop(bytes.drain(at..end)),
                1 => drop(bytes.splice(at..at, [self.byte()])),
                2 => {
                    let copy = bytes[at..end].to_vec();
                    drop(bytes.splice(at..at, copy));
                }
                _ if at < bytes.len() => bytes[at] = self.byte(),
                _ => {}
            }
        }
    }

    /// The same bytes in pieces.
    pub(in crate::tests) fn pieces<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        let longest = 1 + self.below(bytes.len().max(1));
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(1 + self.below(longest.min(bytes.len())));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}
