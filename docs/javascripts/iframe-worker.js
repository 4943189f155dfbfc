// The search of the site runs in a worker, and a browser starts none from file:. For a site that is read from a folder
// this puts a hidden frame in the worker's place. The name is what zensical's plugin `offline` looks for: without such
// a script it would load one from another host.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #scope;
    #ready;

    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.#scope = frame.contentWindow;
      this.#scope.postMessage = (data) => {
        const event = new MessageEvent("message", { data });
        this.onmessage?.(event);
        this.dispatchEvent(event);
      };
      const script = frame.contentDocument.createElement("script");
      script.src = new URL(url, document.baseURI).href;
      this.#ready = new Promise((resolve) => script.addEventListener("load", resolve, { once: true }));
      frame.contentDocument.body.append(script);
    }

    postMessage(data) {
      this.#ready.then(() => this.#scope.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.#scope.frameElement.remove();
    }
  };
}
