"""People who call a voice agent, wait out its greeting, and talk with it until the run ends."""

from locust import task

from workers.conversing import CallUser


class Caller(CallUser):
    @task
    def talk(self) -> None:
        with self.call() as call:
            call.listen()
            while call.wants_more():
                if self.barges_in():
                    call.interrupt()
                else:
                    call.say()
