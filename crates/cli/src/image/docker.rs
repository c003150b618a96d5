//! The local Docker: asks its Engine API for an image as an archive.
//!
//! One request over a Unix socket in HTTP/1.0, so the answer is neither chunked nor kept alive; no
//! client library for that.

use super::archive::{Members, image_of};
use super::{Image, ImageError};
use crate::env::{self, Environment};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOCKET_DEFAULT: &str = "/var/run/docker.sock";
/// Docker begins to send within seconds, but may first collect gigabytes of layers.
const SILENCE_MAX: Duration = Duration::from_secs(300);
const HEAD_BYTES_MAX: u64 = 64 * 1024;
const ERROR_BYTES_MAX: u64 = 64 * 1024;

/// The daemon's socket: `DOCKER_HOST=unix://…`, or the usual place.
pub(super) fn socket(env: &Environment) -> PathBuf {
    let given = env.get(env::DOCKER_HOST).and_then(|host| host.strip_prefix("unix://"));
    PathBuf::from(given.unwrap_or(SOCKET_DEFAULT))
}

/// Copies an image out of the daemon into a nameless temporary file and opens that.
pub(super) fn export(name: &str, socket: &Path) -> Result<Image, ImageError> {
    let docker = |source| ImageError::Docker { socket: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(docker)?;
    stream.set_read_timeout(Some(SILENCE_MAX)).map_err(docker)?;
    let request = format!("GET /images/{}/get HTTP/1.0\r\nHost: docker\r\n\r\n", escaped(name));
    stream.write_all(request.as_bytes()).map_err(docker)?;
    let mut answer = BufReader::new(stream);
    let status = read_head(&mut answer).map_err(docker)?;
    if status != 200 {
        let mut text = String::new();
        answer.take(ERROR_BYTES_MAX).read_to_string(&mut text).map_err(docker)?;
        return Err(refusal(name, status, &text));
    }
    let file = spool(&mut answer).map_err(docker)?;
    image_of(&Members::of_file(file, Path::new(&format!("docker-daemon:{name}")))?)
}

/// Reads the status line and skips the headers.
fn read_head(answer: &mut impl BufRead) -> io::Result<u16> {
    let mut head = answer.take(HEAD_BYTES_MAX);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    while line.trim_end() != "" {
        line.clear();
        head.read_line(&mut line)?;
    }
    status.ok_or_else(|| io::Error::other("its answer is not HTTP"))
}

fn spool(answer: &mut impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(answer, &mut file)?;
    file.rewind()?;
    Ok(file)
}

fn refusal(name: &str, status: u16, text: &str) -> ImageError {
    let name = name.to_owned();
    if status == 404 {
        return ImageError::NotInDocker { name };
    }
    let message = serde_json::from_str::<serde_json::Value>(text).ok();
    let message = message.and_then(|json| json["message"].as_str().map(str::to_owned));
    ImageError::DockerRefused { name, reason: message.unwrap_or_else(|| format!("HTTP {status}")) }
}

/// Slashes and colons of a name are part of Docker's path; everything else unusual is escaped.
fn escaped(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/:@.-_".contains(&b);
    let escape = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    name.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A daemon that answers one request.
    fn daemon(answer: Vec<u8>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).expect("the path is free");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the test connects");
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().expect("descriptors are there"));
            while line != "\r\n" {
                line.clear();
                reader.read_line(&mut line).expect("the test sends a head");
            }
            stream.write_all(&answer).expect("the test reads");
        });
        (dir, socket)
    }

    #[test]
    fn an_image_that_docker_does_not_have_is_named_with_what_to_do() {
        let body = b"HTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"no such image\"}".to_vec();
        let (_dir, socket) = daemon(body);
        let error = export("nginx:1", &socket).expect_err("there is none");
        assert_eq!(error.to_string(), "the Docker daemon has no image 'nginx:1'");
        assert!(error.hint().is_some_and(|hint| hint.contains("docker pull nginx:1")));
    }

    #[test]
    fn a_daemon_that_does_not_run_is_named_by_its_socket() {
        let error = export("nginx", Path::new("/nonexistent/docker.sock")).expect_err("none runs");
        assert!(error.to_string().contains("/nonexistent/docker.sock"));
        assert!(error.hint().is_some_and(|hint| hint.contains("oci-archive:FILE")));
    }

    #[test]
    fn an_export_becomes_an_image() {
        let mut answer = b"HTTP/1.0 200 OK\r\nContent-Type: x\r\n\r\n".to_vec();
        answer.extend(super::super::archive::tests::saved(&[("layer.tar", b"abc")], "layer.tar"));
        let (_dir, socket) = daemon(answer);
        let image = export("nginx", &socket).expect("it is whole");
        assert_eq!(image.blobs.len(), 2);
    }

    #[test]
    fn an_export_that_breaks_off_is_refused() {
        let mut answer = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
        answer.extend(super::super::archive::tests::saved(&[("layer.tar", b"abc")], "layer.tar"));
        answer.truncate(700);
        let (_dir, socket) = daemon(answer);
        assert!(export("nginx", &socket).is_err());
    }
}
