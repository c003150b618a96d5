//! Images out of what Debian packages have put on this machine: real programs, not changed in any way.
//!
//! The files of a few packages and the libraries that their programs are linked with are copied below one root. The
//! result lies as an OCI layout beside the test programs, under the name of everything it was made from, so that
//! it is made once and deployed often.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{Image, process};

/// What no program in a Machine reads.
const UNREAD: &[&str] = &[
    "/etc/",
    "/lib/systemd",
    "/usr/include/",
    "/usr/lib/systemd",
    "/usr/share/bash-completion",
    "/usr/share/bug",
    "/usr/share/doc",
    "/usr/share/lintian",
    "/usr/share/locale",
    "/usr/share/man",
    "/usr/share/systemtap",
    "/var/",
];

/// Where PostgreSQL keeps its data in a Machine.
const POSTGRES_DATA: &str = "/var/lib/postgresql/data";

/// What goes into an image.
struct Recipe<'a> {
    name: &'a str,
    packages: &'a [&'a str],
    /// Programs of this machine that are no part of those packages.
    programs: &'a [&'a str],
    /// Beginnings of paths in the packages that are left out.
    without: &'a [&'a str],
    /// Completes the root.
    finish: &'a dyn Fn(&Path) -> Result<()>,
    /// Completes the image's configuration.
    configure: &'a dyn Fn(Image) -> Image,
}

/// PostgreSQL on port 5432, all roles trusted. It starts as root, takes the data of an empty cluster if
/// `/var/lib/postgresql/data` has none, and goes on as the user `postgres`, as the well-known image does.
///
/// By itself it listens before it is ready, and refuses callers meanwhile. With `OPENS_LATE` in the environment it listens
/// elsewhere, and its port is opened when it is ready.
pub fn postgres_image() -> Result<String> {
    let programs = postgres_programs()?;
    let version = programs.parent().and_then(Path::file_name).context("no version")?;
    let package = format!("postgresql-{}", version.to_string_lossy());
    let bitcode = programs.with_file_name("lib").join("bitcode");
    let jit = programs.with_file_name("lib").join("llvmjit");
    let (server, is_ready) = (programs.join("postgres"), programs.join("pg_isready"));
    let recipe = Recipe {
        name: "postgres",
        packages: &[&package],
        programs: &["/usr/bin/setpriv", "/bin/busybox", &is_ready.to_string_lossy()],
        without: &[&bitcode.to_string_lossy(), &jit.to_string_lossy()],
        finish: &|root| {
            let owner = empty_cluster(&programs, &root.join("template"))?;
            let script = postgres_script(&server, &is_ready, owner);
            write(root, "start", script.as_bytes(), 0o755)?;
            copy_tree(Path::new("/usr/lib/locale/C.utf8"), root)
        },
        configure: &|image| image.entrypoint(&["/bin/sh", "/start"]).env(&["LC_ALL=C.UTF-8"]),
    };
    recipe.layout()
}

/// A program of PostgreSQL on this machine, such as `pgbench`.
pub fn postgres_program(name: &str) -> Result<PathBuf> {
    Ok(postgres_programs()?.join(name))
}

/// The directory with the programs of the newest version.
fn postgres_programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let dirs = versions.map(|entry| entry.path().join("bin"));
    let newest = dirs.filter(|dir| dir.join("postgres").is_file()).max();
    newest.context("PostgreSQL is not installed in /usr/lib/postgresql")
}

/// Makes a cluster; returns the number of the user whose it is. The server refuses to run as root, so do its tools.
fn empty_cluster(programs: &Path, to: &Path) -> Result<u32> {
    let dir = tempfile::Builder::new().prefix("perch-postgres-").tempdir()?;
    run(Command::new("chown").arg("postgres").arg(dir.path()))?;
    let data = dir.path().join("data");
    let mut initdb = Command::new("setpriv");
    initdb.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]);
    initdb.arg(programs.join("initdb")).arg("-D").arg(&data).current_dir(dir.path());
    initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-k", "-N"]);
    run(&mut initdb)?;
    run(Command::new("cp").arg("-a").arg(&data).arg(to))?;
    append(&to.join("pg_hba.conf"), "host all all all trust\n")?;
    append(&to.join("postgresql.conf"), POSTGRES_SETTINGS)?;
    Ok(fs::metadata(to)?.uid())
}

/// Time zones by names are in another package.
const POSTGRES_SETTINGS: &str = "\
listen_addresses = '*'
max_connections = 200
unix_socket_directories = '/tmp'
timezone = 'GMT'
log_timezone = 'GMT'
";

fn postgres_script(server: &Path, is_ready: &Path, owner: u32) -> String {
    format!(
        "set -e\n\
         if [ ! -s {POSTGRES_DATA}/PG_VERSION ]; then\n\
         busybox mkdir -p {POSTGRES_DATA}\n\
         busybox cp -a /template/. {POSTGRES_DATA}\n\
         busybox chown {owner}:{owner} {POSTGRES_DATA}\n\
         busybox chmod 700 {POSTGRES_DATA}\n\
         fi\n\
         if [ -n \"$OPENS_LATE\" ]; then\n\
         elsewhere='-p 5433'\n\
         ( ( until {} -q -U postgres -h 127.0.0.1 -p 5433; do busybox sleep 0.02; done\n\
         exec busybox nc -ll -p 5432 -e /bin/busybox nc 127.0.0.1 5433 ) & )\n\
         fi\n\
         exec /usr/bin/setpriv --reuid={owner} --regid={owner} --clear-groups {} -D {POSTGRES_DATA} $elsewhere\n",
        is_ready.display(),
        server.display()
    )
}

/// Redis on port 6379, as a user without rights, with its dumps in `/data`.
pub fn redis_image() -> Result<String> {
    const USER: u32 = 999;
    let recipe = Recipe {
        name: "redis",
        packages: &["redis-tools"],
        programs: &[],
        without: &[],
        finish: &|root| {
            write(
                root,
                "etc/passwd",
                format!("redis:x:{USER}:{USER}::/data:/bin/sh\n").as_bytes(),
                0o644,
            )?;
            // Debian has the server and its checking tools in one file, which does what it is called.
            fs::rename(root.join("usr/bin/redis-check-rdb"), root.join("usr/bin/redis-server"))?;
            fs::create_dir_all(root.join("data"))?;
            Ok(chown(root.join("data"), Some(USER), Some(USER))?)
        },
        configure: &|image| {
            let program = ["/usr/bin/redis-server", "--dir", "/data", "--protected-mode", "no"];
            image.user("redis").entrypoint(&program)
        },
    };
    recipe.layout()
}

/// Node, as an HTTP server on port 8080 whose `keepAliveTimeout` is `KEEP_ALIVE_MS`, 5,000 by default.
pub fn node_image() -> Result<String> {
    let node = process::which("node").context("node is not installed")?;
    let recipe = Recipe {
        name: "node",
        packages: &[],
        programs: &[&node.to_string_lossy()],
        without: &[],
        finish: &|root| write(root, "app/server.js", NODE_APP.as_bytes(), 0o644),
        configure: &|image| image.entrypoint(&[&node.to_string_lossy(), "/app/server.js"]),
    };
    recipe.layout()
}

/// HTTP; `/events`, a stream; WebSockets, to whom each message comes back, `slow` after two seconds;
/// `/publish` tells all of them.
const NODE_APP: &str = "\
const crypto = require('crypto')
const http = require('http')
let count = 0
const streams = new Set()
const sockets = new Set()
const say = (socket, text) => socket.write(Buffer.concat([Buffer.from([0x81, text.length]), Buffer.from(text)]))
const server = http.createServer((request, response) => {
  count += 1
  const [path, query] = request.url.split('?')
  if (path === '/events') {
    response.writeHead(200, { 'Content-Type': 'text/event-stream' })
    response.write('data: hello\\n\\n')
    streams.add(response)
    response.on('close', () => streams.delete(response))
    return
  }
  if (path === '/publish') {
    streams.forEach(stream => stream.write(`data: ${query}\\n\\n`))
    sockets.forEach(socket => say(socket, query))
  }
  response.end(`node ${process.pid}, request ${count}\\n`)
})
server.on('upgrade', (request, socket) => {
  const key = request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
  const accept = crypto.createHash('sha1').update(key).digest('base64')
  socket.write('HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n' +
    `Sec-WebSocket-Accept: ${accept}\\r\\n\\r\\n`)
  sockets.add(socket)
  socket.on('error', () => {})
  socket.on('close', () => sockets.delete(socket))
  socket.on('data', frame => {
    if (frame[0] !== 0x81) return socket.end()
    const text = frame.subarray(6, 6 + (frame[1] & 0x7f)).toString()
    setTimeout(() => say(socket, `${process.pid} ${text}`), text === 'slow' ? 2000 : 0)
  })
})
server.keepAliveTimeout = Number(process.env.KEEP_ALIVE_MS || 5000)
server.listen(8080, '0.0.0.0')
";

/// Python with uvicorn, gunicorn and websockets, and `app.py` in `/app`; `[processes]` says what runs.
pub fn python_image() -> Result<String> {
    let packages = [
        "python3-h11",
        "python3-asgiref",
        "python3-click",
        "python3-uvicorn",
        "python3-gunicorn",
        "python3-pkg-resources",
        "python3-websockets",
    ];
    python("python", &packages)
}

/// Python with gRPC.
pub fn grpc_image() -> Result<String> {
    python("grpc", &["python3-grpcio"])
}

fn python(name: &str, more: &[&str]) -> Result<String> {
    let interpreter = fs::canonicalize("/usr/bin/python3").context("finding Debian's python3")?;
    let version = interpreter.file_name().context("no name")?.to_string_lossy().into_owned();
    let minimal = format!("{version}-minimal");
    let (base, standard) = (format!("lib{minimal}"), format!("lib{version}-stdlib"));
    let own = [minimal.as_str(), &base, &standard, "python3-minimal"];
    let packages = [&own, more].concat();
    let library = format!("/usr/lib/{version}");
    let unused = ["test", "idlelib", "tkinter", "ensurepip", "lib2to3", "pydoc_data"];
    let unused = unused.map(|name| format!("{library}/{name}"));
    let unused: Vec<&str> = unused.iter().map(String::as_str).collect();
    let recipe = Recipe {
        name,
        packages: &packages,
        programs: &["/bin/busybox"],
        without: &unused,
        finish: &|root| {
            write(root, "app/app.py", PYTHON_APP.as_bytes(), 0o644)?;
            write(root, "etc/mime.types", b"", 0o644)?;
            compile(&interpreter, root)
        },
        configure: &|image| image.env(&["PYTHONPATH=/app", "PYTHONUNBUFFERED=1"]),
    };
    recipe.layout()
}

/// Compiles for good: an archive keeps no times of files, and compiling at each start would take seconds.
fn compile(interpreter: &Path, root: &Path) -> Result<()> {
    let mode = ["-m", "compileall", "-q", "-j0", "--invalidation-mode", "unchecked-hash"];
    run(Command::new(interpreter).args(mode).arg(root.join("usr/lib")).arg(root.join("app")))
}

/// `asgi`: HTTP, WebSocket (each message comes back, `slow` after two seconds) and `/events`, a stream.
/// `wsgi`: HTTP alone.
pub const PYTHON_APP: &str = r#"
import asyncio, os

events = []

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await asyncio.sleep(2 if message["text"] == "slow" else 0)
            await send({"type": "websocket.send", "text": f"{os.getpid()} {message['text']}"})
    kind = b"text/event-stream" if scope["path"] == "/events" else b"text/plain"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if scope["path"] == "/events":
        queue = asyncio.Queue()
        events.append(queue)
        await send({"type": "http.response.body", "body": b"data: hello\n\n", "more_body": True})
        while True:
            text = await queue.get()
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
    if scope["path"] == "/publish":
        for queue in events:
            queue.put_nowait(f"data: {scope['query_string'].decode()}\n\n")
    await send({"type": "http.response.body", "body": f"pid {os.getpid()}\n".encode()})

def wsgi(environ, start_response):
    body = f"pid {os.getpid()}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"#;

impl Recipe<'_> {
    /// What `--image` takes.
    fn layout(&self) -> Result<String> {
        let dir = cache()?.join(format!("{}-{}", self.name, self.key()?));
        if !dir.exists() {
            self.make(&dir).with_context(|| format!("making an image of {}", self.name))?;
        }
        Ok(format!("oci:{}", dir.display()))
    }

    /// Everything that decides what is in the image.
    fn key(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(include_str!("packaged.rs"));
        for package in self.packages {
            hash.update(output(Command::new("dpkg-query").args(["-W", package]))?);
        }
        for program in self.programs {
            let file = fs::metadata(program).with_context(|| format!("looking at {program}"))?;
            hash.update(format!("{program} {} {}", file.len(), file.mtime()));
        }
        Ok(hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
    }

    fn make(&self, dir: &Path) -> Result<()> {
        let parent = dir.parent().context("no parent")?;
        fs::create_dir_all(parent)?;
        // Made aside, so that whoever comes at the same time finds all of it or nothing.
        let aside = TempDir::new_in(parent)?;
        let root = aside.path().join("root");
        fs::create_dir(&root)?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
        let mut files: BTreeSet<PathBuf> = self.programs.iter().map(PathBuf::from).collect();
        for package in self.packages {
            files.extend(self.files_of(package)?);
        }
        files.extend(libraries(&files)?);
        for file in &files {
            copy(file, &root)?;
        }
        usual_places(&root)?;
        (self.finish)(&root)?;
        let layout = aside.path().join("layout");
        (self.configure)(Image::directory(&root)?).write(&layout)?;
        match fs::rename(&layout, dir) {
            Err(_) if dir.exists() => Ok(()),
            other => Ok(other?),
        }
    }

    fn files_of(&self, package: &str) -> Result<Vec<PathBuf>> {
        let list = output(Command::new("dpkg").args(["-L", package]))?;
        let left_out = |path: &str| {
            UNREAD.iter().chain(self.without).any(|beginning| path.starts_with(beginning))
        };
        let kept = list.lines().filter(|path| !left_out(path)).map(PathBuf::from);
        Ok(kept.filter(|path| path.is_file()).collect())
    }
}

/// Beside the test programs, below the target directory.
fn cache() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let dir = own.parent().context("no parent")?;
    let dir = if dir.file_name() == Some(OsStr::new("deps")) { dir.parent() } else { Some(dir) };
    Ok(dir.context("no parent")?.join("perch-images"))
}

/// What the dynamic linker would load for these, also for what they load.
fn libraries(files: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>> {
    let linked: Vec<&PathBuf> = files.iter().filter(|file| is_elf(file)).collect();
    // It fails for static programs and goes on.
    let list = Command::new("ldd").args(linked).output().context("running ldd")?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let missing = list.lines().find(|line| line.contains("not found"));
    if let Some(missing) = missing {
        bail!("a library is not installed: {}", missing.trim());
    }
    let words = list.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.filter(|word| !word.ends_with(':')).map(PathBuf::from).collect())
}

fn is_elf(file: &Path) -> bool {
    let mut start = [0; 4];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && &start == b"\x7fELF"
}

/// Copies a file, or what a link leads to, to its place below `root`; `/lib` is in `/usr` there if it is so here.
fn copy(file: &Path, root: &Path) -> Result<()> {
    let parent = fs::canonicalize(file.parent().context("no parent")?)?;
    let to = root.join(parent.strip_prefix("/")?);
    fs::create_dir_all(&to)?;
    fs::copy(file, to.join(file.file_name().context("no name")?))
        .with_context(|| format!("copying {}", file.display()))?;
    Ok(())
}

fn copy_tree(dir: &Path, root: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() { copy_tree(&path, root)? } else { copy(&path, root)? }
    }
    Ok(())
}

/// What every Debian image has beside its packages.
fn usual_places(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        if !root.join(name).exists() {
            symlink(format!("usr/{name}"), root.join(name))?;
        }
    }
    let shell = root.join("bin/sh");
    if root.join("bin/busybox").exists() && !shell.exists() {
        symlink("busybox", shell)?;
    }
    for name in ["tmp", "var/tmp"] {
        fs::create_dir_all(root.join(name))?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o1777))?;
    }
    Ok(())
}

fn write(root: &Path, name: &str, content: &[u8], mode: u32) -> Result<()> {
    let file = root.join(name);
    fs::create_dir_all(file.parent().context("no parent")?)?;
    fs::write(&file, content)?;
    Ok(fs::set_permissions(&file, fs::Permissions::from_mode(mode))?)
}

fn append(file: &Path, text: &str) -> Result<()> {
    let content = fs::read_to_string(file)? + text;
    // The owner stays: the file is only written anew.
    Ok(fs::write(file, content)?)
}

fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("starting {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
