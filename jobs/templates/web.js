// A file's name can be a patient's: it does not leave the browser, and no message shows it.
(() => {
  const unnamed = (files) => {
    const transfer = new DataTransfer();
    for (const file of files) transfer.items.add(new File([file], "image", { type: file.type }));
    return transfer.files;
  };
  document.addEventListener("change", (event) => {
    if (event.target.type === "file") event.target.files = unnamed(event.target.files);
  }, true);
  document.addEventListener("drop", (event) => {
    const input = document.querySelector("input[type=file]");
    if (!input || !event.dataTransfer.files.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);
})();
