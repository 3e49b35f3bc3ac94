"""People who listen to an HTTP text-to-speech server: S2's pace and body by default, all else from the scenario."""

from locust import task

from workers.users import SpeechUser


class Listener(SpeechUser):
    keep_audio = False

    @task
    def say(self) -> None:
        name, text = self.pick_text()
        self.speak(text, name=name)
