//! Who rests, and whether its Machine is at work.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::rc::Rc;

use perch_core::balancer::{MachineView, Settings};
use perch_core::ids::Region;
use perch_core::lifecycle::MachineState;
use perch_core::service::Autostop;

use super::*;
use crate::app::planted::{self, PORT, plant_panics, planted_panics};
use crate::freezer::Freezer;
use crate::server_side::ServerSide;

const RUN: u64 = 1;

fn napping(id: MachineId) -> MachineView {
    let sleep = (Autostop::Suspend, Duration::from_secs(300));
    planted::machine(id, MachineState::Started, RUN, sleep)
}

/// An app with one Machine, and the file that says how much of a processor that has used.
fn app_with_one(id: MachineId) -> (Rc<App>, File) {
    let settings = Settings { region: Region::LOCAL };
    let app = App::new("app", settings, ServerSide::new());
    app.set_machines(vec![napping(id)], Box::default());
    let file = || tempfile::tempfile().expect("a file");
    let (thaw, used) = (file(), file());
    used.write_all_at(b"usage_usec 10000000\n", 0).expect("written");
    let inode = thaw.metadata().expect("a file").ino();
    let files = vec![thaw.into(), used.try_clone().expect("a descriptor").into()];
    let freezer = Freezer::new(RUN, "0".to_owned(), inode, files).expect("it fits");
    app.set_freezer(id, freezer);
    (app, used)
}

async fn who_rests_counts_after_a_panic() {
    let id = MachineId::from_low_bits(1);
    let (app, used) = app_with_one(id);
    let place = app.choose(PORT, Origin::Caller).expect("a place");
    plant_panics(1);
    place.park();
    assert_eq!(planted_panics(), 0);
    assert_eq!(app.balancer.borrow().belief(id).expect("known").parked, 0, "it begins anew");
    assert!(!app.is_at_work(id, RUN), "it has only waited");
    used.write_all_at(b"usage_usec 20000000\n", 0).expect("written");
    assert!(app.is_at_work(id, RUN));
    used.write_all_at(b"usage_usec 30000000\n", 0).expect("written");
    assert!(!app.is_at_work(id, RUN + 1), "in another run nobody rests");
    drop(place);
    assert!(!app.is_at_work(id, RUN), "nobody rests any more");
}

#[test]
fn connections_that_rested_when_the_balancer_panicked_keep_a_machine_at_work_awake() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime.expect("a runtime"), who_rests_counts_after_a_panic());
}

#[test]
fn a_little_cpu_is_no_work_and_a_share_of_it_is() {
    let millis = Duration::from_millis;
    assert!(!is_work(millis(100), millis(5)));
    assert!(is_work(millis(100), millis(6)));
    assert!(!is_work(Duration::from_secs(300), Duration::from_secs(6)));
    assert!(is_work(Duration::from_secs(300), Duration::from_secs(7)));
}
