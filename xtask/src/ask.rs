//! Asks a model a question over HTTP and shows the answer as it comes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What was seen of an answer.
pub(crate) struct Answer {
    /// The text.
    pub(crate) text: String,
    /// The commit in the answer's header.
    pub(crate) commit: String,
    /// Time until the first piece came.
    pub(crate) first: Duration,
    /// Pieces that came.
    pub(crate) pieces: usize,
    /// Time in all.
    pub(crate) total: Duration,
}

/// Sends a chat request to `127.0.0.1:port` and gives each piece of the answer to `show`.
pub(crate) fn ask(
    port: u16,
    model: &str,
    question: &str,
    show: &mut dyn FnMut(&str),
) -> Result<Answer> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port))
        .with_context(|| format!("nothing answers at 127.0.0.1:{port}"))?;
    stream.set_read_timeout(Some(Duration::from_mins(2)))?;
    let body = serde_json::json!({
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": true,
        "max_tokens": 80,
        "temperature": 0,
    })
    .to_string();
    // In one piece, for a server may answer as soon as it has read something.
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\
         Content-Type: application/json\r\nAccept: text/event-stream\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader)?;
    let mut body: Box<dyn BufRead> = if head.chunked {
        Box::new(BufReader::new(Chunked {
            inner: reader,
            left: 0,
            ended: false,
        }))
    } else {
        Box::new(reader)
    };
    if head.status != 200 {
        let mut text = String::new();
        body.take(2000).read_to_string(&mut text)?;
        bail!("the endpoint answered {}: {}", head.status, text.trim());
    }
    let mut answer = Answer {
        text: String::new(),
        commit: head.commit,
        first: Duration::ZERO,
        pieces: 0,
        total: Duration::ZERO,
    };
    let mut line = String::new();
    loop {
        line.clear();
        if body.read_line(&mut line)? == 0 {
            bail!("the answer broke off after {:?}", answer.text);
        }
        let Some(data) = line.trim_end().strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" {
            answer.total = started.elapsed();
            return Ok(answer);
        }
        let event: Value = serde_json::from_str(data).context("an event is not JSON")?;
        if let Some(error) = event.get("error") {
            bail!("the answer ended with an error: {error}");
        }
        if let Some(piece) = event["choices"][0]["delta"]["content"].as_str()
            && !piece.is_empty()
        {
            if answer.pieces == 0 {
                answer.first = started.elapsed();
            }
            answer.pieces += 1;
            answer.text.push_str(piece);
            show(piece);
        }
    }
}

struct Head {
    status: u16,
    chunked: bool,
    commit: String,
}

fn read_head(reader: &mut impl BufRead) -> Result<Head> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let mut head = Head {
        status: status.with_context(|| format!("{line:?} is no HTTP answer"))?,
        chunked: false,
        commit: String::new(),
    };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(head);
        };
        match name.to_ascii_lowercase().as_str() {
            "transfer-encoding" => head.chunked = value.contains("chunked"),
            "x-hyprstream-commit" => value.trim().clone_into(&mut head.commit),
            _ => {}
        }
    }
}

/// Takes the chunked transfer coding off.
struct Chunked<R> {
    inner: R,
    left: usize,
    ended: bool,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 && !self.ended {
            let mut line = String::new();
            while line.trim().is_empty() {
                line.clear();
                if self.inner.read_line(&mut line)? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            let size = line.trim().split(';').next().unwrap_or_default();
            self.left = usize::from_str_radix(size, 16)
                .map_err(|_| std::io::Error::other(format!("{line:?} is no size of a chunk")))?;
            self.ended = self.left == 0;
        }
        let most = self.left.min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        self.left -= count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn serve(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = [0; 4096];
            let _ = stream.read(&mut all).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        port
    }

    #[test]
    fn the_pieces_of_a_chunked_stream_are_put_together() {
        let port = serve(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-hyprstream-commit: abc\r\n\r\n\
             34\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"Paris\"}}]}\n\n\n\r\n\
             30\r\ndata: {\"choices\":[{\"delta\":{\"content\":\".\"}}]}\n\n\n\r\n\
             e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
        );
        let mut shown = Vec::new();
        let answer = ask(port, "m", "?", &mut |piece| shown.push(piece.to_owned())).unwrap();
        assert_eq!(answer.text, "Paris.");
        assert_eq!((answer.commit.as_str(), answer.pieces), ("abc", 2));
        assert_eq!(shown, ["Paris", "."]);
    }

    #[test]
    fn an_error_answer_and_a_broken_stream_are_errors() {
        let port = serve("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone");
        assert!(
            ask(port, "m", "?", &mut |_| ())
                .err()
                .unwrap()
                .to_string()
                .contains("404")
        );
        let port = serve("HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\":[]}\n\n");
        assert!(
            ask(port, "m", "?", &mut |_| ())
                .err()
                .unwrap()
                .to_string()
                .contains("broke off")
        );
    }
}
