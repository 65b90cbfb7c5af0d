import threading
import time


class State:
    """What the server is doing now, and the page's wishes: interrupt, skip, restart."""

    def __init__(self):
        self._command = None
        self._signal = threading.Condition()
        self.begin("")
        self.end()

    def begin(self, job="(unknown)"):
        self.job, self.job_no, self.job_count, self.time_start = job, 0, -1, time.time()
        self.processing_has_refined_job_count = False
        self.sampling_step = self.sampling_steps = 0
        self.current_latent = self.current_image = self.textinfo = None
        self.id_live_preview = self.current_image_sampling_step = 0
        self.skipped = self.interrupted = self.stopping_generation = False
        self.job_timestamp = time.strftime("%Y%m%d%H%M%S")

    def end(self):
        self.job, self.job_count = "", 0

    def nextjob(self):
        self.job_no += 1
        self.sampling_step = 0

    def skip(self):
        self.skipped = True

    def interrupt(self):
        self.interrupted = True

    def stop_generating(self):
        self.stopping_generation = True

    def assign_current_image(self, image):
        self.current_image = image
        self.id_live_preview += 1

    @property
    def server_command(self):
        return self._command

    @server_command.setter
    def server_command(self, value):
        with self._signal:
            self._command = value
            self._signal.notify_all()

    def request_restart(self):
        self.interrupt()
        self.server_command = "restart"

    def wait_for_server_command(self, timeout=None):
        with self._signal:
            if self._command is None:
                self._signal.wait(timeout)
            command, self._command = self._command, None
            return command
