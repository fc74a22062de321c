//! As much of HTTP/1.1 as a scraper and a health check need: GET and HEAD, one request a connection.

/// The longest head of a request, in bytes.
pub const HEAD_BYTES_MAX: usize = 8192;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted<'a> {
    /// This path, without what follows a question mark; without the body, if it was asked for by HEAD.
    Path(&'a str, Body),
    /// By another method.
    OtherMethod,
    /// That was no request.
    Nothing,
}

/// Whether the answer has its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// It has.
    Sent,
    /// It is only told how long it would be.
    Omitted,
}

/// What a whole head asks for; `None` while it is not whole.
pub fn read(head: &[u8]) -> Option<Wanted<'_>> {
    let ends = |end: &[u8]| head.windows(end.len()).any(|window| window == end);
    if !ends(b"\r\n\r\n") && !ends(b"\n\n") {
        return None;
    }
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let words: Option<Vec<&str>> = str::from_utf8(line).ok().map(|line| line.split_ascii_whitespace().collect());
    Some(match words.as_deref() {
        Some(&[method, target, version]) if version.starts_with("HTTP/1.") => {
            let path = target.split('?').next().unwrap_or_default();
            match method {
                "GET" => Wanted::Path(path, Body::Sent),
                "HEAD" => Wanted::Path(path, Body::Omitted),
                _ => Wanted::OtherMethod,
            }
        }
        _ => Wanted::Nothing,
    })
}

/// A whole answer, after which the connection ends.
pub fn answer(status: &str, kind: &str, text: &str, body: Body) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        text.len()
    );
    let body = if body == Body::Sent { text } else { "" };
    [head.as_bytes(), body.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_when_it_is_whole() {
        let whole = b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n";
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), None);
        }
        assert_eq!(read(whole), Some(Wanted::Path("/metrics", Body::Sent)));
        assert_eq!(read(b"HEAD /healthz HTTP/1.0\n\n"), Some(Wanted::Path("/healthz", Body::Omitted)));
        assert_eq!(read(b"POST / HTTP/1.1\r\n\r\n"), Some(Wanted::OtherMethod));
    }

    #[test]
    fn what_is_no_request_is_none() {
        for text in
            ["\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/2\r\n\r\n", "a b c d HTTP/1.1\r\n\r\n", "\u{16}\u{3}\r\n\r\n"]
        {
            assert_eq!(read(text.as_bytes()), Some(Wanted::Nothing), "{text:?}");
        }
        assert_eq!(read(b"\xff\xfe / HTTP/1.1\r\n\r\n"), Some(Wanted::Nothing));
    }

    #[test]
    fn a_head_tells_its_bodys_length_and_sends_none() {
        let answer = String::from_utf8(answer("200 OK", "text/plain", "four", Body::Omitted)).expect("text");
        assert!(answer.contains("Content-Length: 4\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    }
}
