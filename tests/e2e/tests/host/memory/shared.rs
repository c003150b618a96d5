//! Shared memory and `/dev/shm` of sleepers: they count as all other memory does, and go where it goes.

use std::net::SocketAddr;

use perch_testkit::{python_image, wait_until};

use super::*;
use crate::real_http::{base64, web};

/// Holds half of it in a mapping that its fork shares, half in `/dev/shm`, and says what it finds there.
const HOLDER: &str = "\
import http.server, mmap, os
size = int(os.environ['EACH_MB']) << 20
piece = os.urandom(1 << 20)
mapped = mmap.mmap(-1, size)
for at in range(0, size, len(piece)):
    mapped[at:at + len(piece)] = piece
with open('/dev/shm/held', 'wb') as file:
    for at in range(0, size, len(piece)):
        file.write(piece)
def right(read):
    return all(read(at) == piece for at in range(0, size, len(piece)))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open('/dev/shm/held', 'rb') as file:
            found = right(lambda at: file.read(len(piece)))
        found = found and right(lambda at: mapped[at:at + len(piece)])
        body = b'all of it' if found or self.path == '/' else b'something else'
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *rest):
        pass
if os.fork() == 0:
    right(lambda at: mapped[at:at + len(piece)])
    os.read(os.pipe()[0], 1)
http.server.ThreadingHTTPServer(('0.0.0.0', 8080), Handler).serve_forever()
";

/// In each of both places.
const EACH_SHARED_MB: u64 = 60;

/// Both places fit into the swap, beside the interpreter.
const EACH_SWAPPED_MB: u64 = 20;

/// Room for what shares its memory or for what does not, and not for both beside a start.
const ROOM: &str =
    "memory = \"500MiB\"\nmemory_reserve = \"10MiB\"\narmed_max = 0\npage_out_after = \"off\"\n";

#[test]
fn whoever_sleeps_longest_with_shared_memory_gives_way_first() {
    on(
        || without_swap(ROOM),
        |host| {
            shared_holder(host, "shared", EACH_SHARED_MB)?;
            suspend(host, "shared")?;
            check_counted(host, "shared", 2 * EACH_SHARED_MB)?;
            holder_of(host, "private", 150)?;
            suspend(host, "private")?;
            // A start that nothing is known of wants 256 MiB; some 200 are free.
            holder_of(host, "third", 150)?;
            wait_until("the longest asleep to be stopped", SOON, || {
                Ok((host.states("shared")? == ["stopped"]).then_some(()))
            })?;
            ensure!(host.states("private")? == ["suspended"], "the newest went, too");
            check_gave_way(&host.machines("shared")?.pop().context("no Machine")?)
        },
    );
}

#[test]
fn shared_memory_of_a_sleeper_goes_to_swap_and_comes_back() {
    on_host(QUICK, |host| {
        make_swap(host)?;
        let address = shared_holder(host, "shared", EACH_SWAPPED_MB)?;
        let memory = wait_paged_out(host, "shared")?.value["perch_memory"].clone();
        let bytes = |name: &str| memory[name].as_u64().with_context(|| format!("no {name}"));
        let held = (2 * EACH_SWAPPED_MB) << 20;
        ensure!(held <= bytes("swapped_bytes")?, "it is not in swap: {memory}");
        ensure!(bytes("anonymous_bytes")? < 4 << 20, "it is still in memory: {memory}");
        let answer = host.get(&address.ip().to_string(), 80, "/held")?;
        check_answer(&answer, "all of it")?;
        let id = host.machines("shared")?.pop().context("no Machine")?.id;
        check_awake_rank(host, &address.ip().to_string(), &id)
    });
}

fn shared_holder(host: &Host, app: &str, each_mb: u64) -> Result<SocketAddr> {
    let script = base64(host, HOLDER)?;
    let sections = format!(
        "[env]\n  EACH_MB = '{each_mb}'\n[processes]\n  app = 'python3 /srv/holder.py'\n\
         [[files]]\n  guest_path = '/srv/holder.py'\n  raw_value = '{script}'\n"
    );
    web(host, app, &python_image()?, &sections)
}

fn check_counted(host: &Host, app: &str, megabytes: u64) -> Result<()> {
    let memory = host.machines(app)?.pop().context("no Machine")?.value["perch_memory"].clone();
    for name in ["anonymous_bytes", "resident_bytes"] {
        let bytes = memory[name].as_u64().with_context(|| format!("no {name}: {memory}"))?;
        let range = megabytes << 20..(megabytes + 40) << 20;
        ensure!(range.contains(&bytes), "{name} is not about {megabytes} MB: {memory}");
    }
    Ok(())
}
