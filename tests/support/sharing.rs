//! Real engines that several balancers share, and such balancers.

use std::process::Command;

use super::engines::Engines;
use super::{Balancer, folder, reparto};

/// Engines, and what balancers need to share them.
pub struct Shared {
    pub engines: Engines,
    /// As `--bus` names it.
    pub bus: String,
    /// As `--blobs` names it.
    pub blobs: String,
}

impl Shared {
    pub fn start() -> Shared {
        let blobs = format!("file:{}", folder().display());
        let engines = Engines::start(&["postgres", "rabbitmq"]);
        Shared { bus: engines.rabbitmq_url().to_owned(), blobs, engines }
    }

    /// With an S3 server for what is large.
    pub fn start_with_s3() -> Shared {
        let engines = Engines::start(&["postgres", "rabbitmq", "s3"]);
        let (bus, blobs) = (engines.rabbitmq_url().to_owned(), engines.s3_url().to_owned());
        Shared { bus, blobs, engines }
    }

    pub fn command(&self, clients: &str, workers: &str) -> Command {
        let mut command = reparto(["balancer", "--clients", clients, "--workers", workers]);
        command.args(["--store", self.engines.postgres_url(), "--bus", &self.bus]);
        command.args(["--blobs", &self.blobs]);
        if self.blobs.starts_with("s3:") {
            self.engines.with_s3_key(&mut command);
        }
        command.env_remove("REPARTO_BALANCER_NO_DATA");
        command
    }

    pub fn balancer(&self) -> Balancer {
        self.balancer_with(&[])
    }

    pub fn balancer_with(&self, flags: &[&str]) -> Balancer {
        let mut command = self.command("127.0.0.1:0", "127.0.0.1:0");
        command.args(flags);
        Balancer::from_command(command)
    }

    /// What the database answers, as psql prints it.
    pub fn psql(&self, sql: &str) -> String {
        let mut command = Command::new("psql");
        command.args(["-XAt", "-v", "ON_ERROR_STOP=1", "-d", self.engines.postgres_url(), "-c", sql]);
        let output = command.output().expect("this test needs psql; install it (Debian: postgresql-client)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}
