//! Real engines of a test's own: PostgreSQL, RabbitMQ and an S3 server that it may stop, kill and bring back.

use std::path::PathBuf;
use std::process::Command;

use reparto_bench::engines;

/// Engines that scripts/services has brought up in a folder of this test's own; stopped, and removed, at the end.
pub struct Engines {
    // Ended before their folder goes.
    engines: Option<engines::Engines>,
    folder: PathBuf,
}

impl Engines {
    /// Starts some of `postgres`, `rabbitmq` and `s3`.
    pub fn start(names: &[&'static str]) -> Engines {
        let folder = super::folder();
        Engines { engines: Some(engines::Engines::start(&folder, names).unwrap()), folder }
    }

    fn engines(&self) -> &engines::Engines {
        self.engines.as_ref().unwrap()
    }

    /// Starts one again, where it was.
    pub fn up(&self, name: &str) {
        self.engines().up(name).unwrap();
    }

    /// Stops one in good order.
    pub fn down(&self, name: &str) {
        self.engines().down(name).unwrap();
    }

    /// Kills one, with SIGKILL, and waits until it is gone.
    pub fn kill(&self, name: &str) {
        self.engines().kill(name).unwrap();
    }

    fn variable(&self, name: &str) -> &str {
        self.engines().variable(name).unwrap()
    }

    pub fn postgres_url(&self) -> &str {
        self.variable("REPARTO_POSTGRES_URL")
    }

    pub fn rabbitmq_url(&self) -> &str {
        self.variable("REPARTO_RABBITMQ_URL")
    }

    pub fn s3_url(&self) -> &str {
        self.variable("REPARTO_S3_URL")
    }

    /// Gives a command the key to the S3 server.
    pub fn with_s3_key(&self, command: &mut Command) {
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            command.env(name, self.variable(name));
        }
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        self.engines = None;
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
