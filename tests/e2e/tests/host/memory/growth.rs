//! A Machine that runs and grows: sleepers give way before it suffers.

use perch_testkit::python_image;

use super::*;
use crate::real_http::{base64, web};

/// Takes a step of memory, a while after it is asked to, and tells how much it has.
const GROWER: &str = "\
import http.server, os, time
pieces = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/more':
            time.sleep(0.15)
            pieces.append(os.urandom(1 << 20) * int(os.environ['STEP_MB']))
        body = ('%d MB' % (sum(map(len, pieces)) >> 20)).encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *rest):
        pass
http.server.ThreadingHTTPServer(('0.0.0.0', 8080), Handler).serve_forever()
";
const STEP_MB: u64 = 10;

/// More than what its start was let in with counts for.
const EARLY_STEPS: u64 = 14;
/// With the sleeper more than there is.
const STEPS: u64 = 36;
const SLEEPER_MB: u64 = 120;
const LIMIT_MIB: u64 = 450;
/// More than it grows by between two looks at the memory, a second apart.
const RESERVE: &str = "memory_reserve = \"100MiB\"\narmed_max = 0\npage_out_after = \"off\"\n";

#[test]
fn a_machine_that_grows_is_untouched_while_a_sleeper_gives_way() {
    let ceiling = Ceiling::new(LIMIT_MIB);
    on(
        || ceiling.host(RESERVE),
        |host| {
            let address = grower(host)?;
            holder_of(host, "sleeper", SLEEPER_MB)?;
            grow(host, &address, 1..=EARLY_STEPS)?;
            suspend(host, "sleeper")?;
            let before = running(host)?;
            grow(host, &address, EARLY_STEPS + 1..=STEPS)?;
            wait_until("the sleeper to be stopped", SOON, || {
                Ok((host.states("sleeper")? == ["stopped"]).then_some(()))
            })?;
            check_gave_way(&host.machines("sleeper")?.pop().context("no Machine")?)?;
            ensure!(running(host)? == before, "the one that runs was touched");
            check_answer(&host.get(&address, 80, "/")?, &format!("{} MB", STEPS * STEP_MB))?;
            ceiling.check_nobody_else_was_killed()
        },
    );
}

fn grower(host: &Host) -> Result<String> {
    let script = base64(host, GROWER)?;
    let sections = format!(
        "[env]\n  STEP_MB = '{STEP_MB}'\n[processes]\n  app = 'python3 /srv/grower.py'\n\
         [[vm]]\n  memory = '512mb'\n\
         [[files]]\n  guest_path = '/srv/grower.py'\n  raw_value = '{script}'\n"
    );
    Ok(web(host, "grower", &python_image()?, &sections)?.ip().to_string())
}

fn grow(host: &Host, address: &str, steps: std::ops::RangeInclusive<u64>) -> Result<()> {
    for step in steps {
        let answer = host.get(address, 80, "/more")?;
        check_answer(&answer, &format!("{} MB", step * STEP_MB))?;
    }
    Ok(())
}

/// What must stay: its state, and its processes.
fn running(host: &Host) -> Result<(String, Vec<i32>)> {
    let machine = host.machines("grower")?.pop().context("no Machine")?;
    let pids = machine_processes(host, &machine.id).iter().map(|it| it.pid).collect();
    Ok((machine.state, pids))
}
